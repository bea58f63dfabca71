"""The losses as another code base uses them: torch alone, any grid, gradients that teach."""

import subprocess
import sys

import torch

from segtrain import losses


def test_importing_the_losses_needs_torch_only(repository):
    code = (
        "import sys; import segtrain.losses;"
        "print([m for m in ('detectron2', 'pycocotools', 'cv2', 'timm', 'depthcache')"
        " if m in sys.modules])"
    )
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.stdout.strip() == "[]", finished.stderr


def test_everything_announced_exists_and_is_described():
    for name in losses.__all__:
        assert getattr(losses, name).__doc__


def test_the_losses_alone_turn_a_box_into_the_object_in_it():
    """A bright disc on dark ground: logits without any network find it from box and colour."""
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disc = (rows - 16) ** 2 + (columns - 15) ** 2 < 81
    lab = torch.stack([disc * 60.0, disc * 20.0, disc * 0.0])[None]
    extents = losses.mask_grid_extents(
        losses.filled_pixels(torch.tensor([[7.0, 8.0, 23.0, 24.0]]), (32, 32)), stride=1
    )
    similarity = losses.neighbour_similarity(lab, torch.ones(1, 32, 32))
    edges = losses.edges_from_similarity(similarity, 0.3)
    image_indices = torch.zeros(1, dtype=torch.long)
    whole_map = torch.tensor([[0, 32, 0, 32]])
    logits = torch.full((1, 32, 32), -0.3)
    logits[:, 8:25, 7:24] = 0.3  # the filled box
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        (colour,) = losses.pairwise_losses(logits, [edges], image_indices, [whole_map])
        (losses.projection_loss(logits, extents) + colour).backward()
        optimizer.step()
    mask = logits[0] > 0
    iou = (mask & disc).sum() / (mask | disc).sum()
    assert iou > 0.95
