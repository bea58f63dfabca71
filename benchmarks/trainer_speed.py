"""Time and memory of the trainer beside a textbook BoxInst, in one run.

    python benchmarks/trainer_speed.py losses
    python benchmarks/trainer_speed.py step --short-side 640
    python benchmarks/trainer_speed.py distillation --short-side 640
    python benchmarks/trainer_speed.py inference --short-side 640
    python benchmarks/trainer_speed.py agreement   # same losses, boxes and masks on both sides

Without a subcommand all of them run at a small size.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from taking_turns import DEFAULT, TUNED, Side, compare, report, serve

SMALL, FULL = 256, 640
LOSS_SHAPE = (64, 200, 272)

COMPARISONS: dict[str, list[list[Side]]] = {
    "losses": [
        [
            Side("textbook, projection + colour", "losses:textbook:coco", DEFAULT),
            Side("ours, + depth", "losses:ours:coco", DEFAULT),
            Side("ours, + depth, boxes fill the map", "losses:ours:full", DEFAULT),
        ],
        [
            Side("textbook, projection + colour, tuned", "losses:textbook:coco", TUNED),
            Side("ours, + depth, tuned", "losses:ours:coco", TUNED),
            Side("ours, + depth, tuned, boxes fill the map", "losses:ours:full", TUNED),
        ],
    ],
    "step": [
        [
            Side("textbook BoxInst, fp32, tuned", "step:textbook", TUNED),
            Side("ours + depth, fp32, tuned", "step:ours", TUNED),
            Side("ours + depth, bf16, tuned", "step:ours:bf16", TUNED),
        ],
        [
            Side("textbook BoxInst, fp32, default malloc", "step:textbook", DEFAULT),
            Side("ours + depth, fp32, as the command runs it", "step:ours", TUNED),
        ],
    ],
    "distillation": [
        [
            Side("ours + depth, without teacher", "step:ours", TUNED),
            Side("ours + depth + teacher at 800/640", "step:ours:teacher", TUNED),
            Side("the same, the teacher in bf16", "step:ours:teacher:bf16-teacher", TUNED),
        ],
        [
            Side("ours + depth, bf16, without teacher", "step:ours:bf16", TUNED),
            Side("ours + depth + teacher at 800/640, bf16", "step:ours:bf16:teacher", TUNED),
        ],
    ],
    "inference": [
        [
            Side("textbook BoxInst, fp32, tuned", "inference:textbook", TUNED),
            Side("ours, fp32, tuned", "inference:ours", TUNED),
            Side("ours, bf16, tuned", "inference:ours:bf16", TUNED),
        ]
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparison", nargs="?", choices=[*sorted(COMPARISONS), "agreement"])
    parser.add_argument("--short-side", type=int, default=SMALL)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--group", type=int, help="only this group of sides, counted from 0")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        kind, *options = arguments.worker.split(":")
        build = {"losses": build_losses, "step": build_step, "inference": build_inference}[kind]
        serve(build(arguments.short_side, options))
        return
    if arguments.comparison == "agreement":
        check_agreement(arguments.short_side)
        return
    names = [arguments.comparison] if arguments.comparison else list(COMPARISONS)
    for name in names:
        groups = COMPARISONS[name]
        chosen = groups if arguments.group is None else [groups[arguments.group]]
        for sides in chosen:
            print(f"== {name}, short side {arguments.short_side}")
            options = ["--short-side", str(arguments.short_side)]
            report(sides, compare(__file__, sides, options, arguments.rounds))


# --- The measured programs, each in its own process ------------------------------------------


def make_boxes(count: int, size: tuple[int, int], seed: int = 0) -> Any:
    """Boxes whose sides spread as COCO's do: half of them below a quarter of the image's side."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    height, width = size
    share = 0.06 + 0.84 * torch.rand(count, 2, generator=generator) ** 2
    sides = share * torch.tensor([width, height])
    corners = torch.rand(count, 2, generator=generator) * (torch.tensor([width, height]) - sides)
    return torch.cat((corners, corners + sides - 1), dim=1)


def make_batch(short_side: int, num_boxes: tuple[int, ...] = (8, 7)) -> list[dict[str, Any]]:
    """Two images of smooth blotches with noise, their boxes and depth."""
    import torch
    from detectron2.structures import Boxes, Instances
    from torch.nn import functional as F

    size = (short_side, int(short_side * 4 / 3))
    batch = []
    for index, count in enumerate(num_boxes):
        generator = torch.Generator().manual_seed(index)
        blotches = F.interpolate(
            torch.rand(1, 4, 12, 16, generator=generator) * 255, size=size, mode="bicubic"
        )[0]
        noise = 6 * torch.randn(3, *size, generator=generator)
        instances = Instances(size)
        instances.gt_boxes = Boxes(make_boxes(count, size, index))
        instances.gt_classes = torch.randint(0, 80, (count,), generator=generator)
        batch.append(
            {
                "image": (blotches[:3] + noise).clamp(0, 255).byte(),
                "height": size[0],
                "width": size[1],
                "instances": instances,
                "inverse_depth_255": blotches[3].clamp(0, 255),
            }
        )
    return batch


def build_losses(_short_side: int, options: list[str]) -> Callable[[], None]:
    """Losses of 64 masks of two images, forward and backward."""
    import torch

    program, boxes_kind = options
    num_instances, height, width = LOSS_SHAPE
    torch.manual_seed(0)
    logits = (2 * torch.randn(num_instances, height, width)).requires_grad_()
    similarity = torch.rand(2, 8, height, width) ** 0.7
    depth_similarity = torch.rand(2, 8, height, width) ** 0.7
    images = torch.arange(num_instances) // (num_instances // 2)
    boxes = make_boxes(num_instances, (4 * height, 4 * width))
    if boxes_kind == "full":
        boxes = torch.tensor([[0, 0, 4 * width - 1, 4 * height - 1]]).expand(num_instances, 4)
    if program == "textbook":
        import textbook_boxinst

        bitmasks = textbook_boxinst.draw_boxes(boxes, (4 * height, 4 * width))[:, None, 2::4, 2::4]

        def run() -> None:
            logits.grad = None
            losses = textbook_boxinst.mask_losses(
                logits[:, None], similarity[images], bitmasks.float()
            )
            sum(losses.values()).backward()

        return run

    from segtrain.losses.pairwise import edges_from_similarity, pairwise_losses
    from segtrain.losses.projection import projection_loss
    from segtrain.mask_grid.bitmasks import filled_pixels, mask_grid_extents

    extents = mask_grid_extents(filled_pixels(boxes.float(), (4 * height, 4 * width)))

    def run_ours() -> None:
        logits.grad = None
        edges = [
            edges_from_similarity(similarity, 0.3),
            edges_from_similarity(depth_similarity, 0.5),
        ]
        color, depth = pairwise_losses(logits, edges, images, [extents, extents])
        (projection_loss(logits, extents) + color + depth).backward()

    return run_ours


def build_model(program: str, **settings: Any) -> Any:
    """The textbook's or the trainer's model with the same weights where they have the same."""
    import torch

    torch.manual_seed(0)
    if program == "textbook":
        from textbook_boxinst import TextbookBoxInst

        model: Any = TextbookBoxInst(score_threshold=settings.get("score_threshold", 0.05))
    else:
        from segtrain.cpu_kernels.acceleration import accelerate
        from segtrain.modeling.backbones import build_resnet_fpn
        from segtrain.modeling.build import build_condinst

        model = build_condinst(backbone=build_resnet_fpn(50), num_classes=80, **settings)
        accelerate(model)
    state = model.state_dict()
    generator = torch.Generator().manual_seed(1)
    for name, value in state.items():
        if name.endswith("conv3.norm.weight"):
            value.fill_(0.3)  # else random residual blocks double the activations each time
        elif name.endswith("weight") and value.ndim == 4 and "controller" not in name:
            fan_in = value[0].numel()
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5)
    return model


def check_agreement(short_side: int) -> None:
    """Both models with the same weights on the same images: losses, boxes and masks.

    Raises:
        AssertionError: a loss differs by 1e-4, a box by a tenth of a pixel, or a mask's IoU is
            below 0.99.
    """
    import torch

    textbook, ours = (build_model(p, score_threshold=0.0) for p in ("textbook", "ours"))
    ours.load_state_dict(textbook.state_dict())
    ours.set_iteration(20_000)
    batch = make_batch(short_side)
    expected, actual = textbook.train()(batch), ours.train()(batch)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-5)
        print(f"{name}: {value.item():.6f}, ours {actual[name].item():.6f}")
    with torch.inference_mode():
        theirs, found = textbook.eval()(batch[:1])[0], ours.eval()(batch[:1])[0]["instances"]
    box_error = (theirs["boxes"] - found.pred_boxes.tensor).abs().max().item()
    both = (theirs["masks"] & found.pred_masks).flatten(1).sum(1)
    either = (theirs["masks"] | found.pred_masks).flatten(1).sum(1)
    worst_iou = (both.clamp(min=1) / either.clamp(min=1)).min().item()
    print(f"{len(found)} boxes differ by {box_error:.4f} px at most, mask IoU from {worst_iou:.4f}")
    assert box_error < 0.1
    assert worst_iou > 0.99


def build_step(short_side: int, options: list[str]) -> Callable[[], None]:
    """A whole training step: losses, gradients, SGD."""
    import torch

    from segtrain.distillation.teacher import DistillationSettings
    from segtrain.run.determinism import deterministic_algorithms

    program = options[0]
    batch = make_batch(short_side)
    settings: dict[str, Any] = {}
    if program == "ours":
        settings = {"depth_layer": True, "consistency": True}
    if "teacher" in options:
        precision = "bf16" if "bf16-teacher" in options else "student"
        settings["distillation"] = DistillationSettings(teacher_precision=precision)
    model = build_model(program, **settings).train()
    teacher = None
    if "teacher" in options:
        with torch.no_grad():  # boxes of six strides, as of a trained model, rather than of a pixel
            model.proposal_generator.fcos_head.bbox_pred.bias.fill_(3.0)
        teacher = model.distillation.make_teacher(model)
        larger = make_batch(short_side * 800 // FULL)
        for entry, view in zip(batch, larger, strict=True):
            entry["teacher_image"] = view["image"]
    if program == "ours":
        model.set_iteration(65_000 if "teacher" in options else 20_000)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=1e-5, momentum=0.9, weight_decay=1e-4)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled="bf16" in options)

    def run() -> None:
        # As the trainer computes, whose gradients are summed in a fixed order.
        with deterministic_algorithms(torch.device("cpu"), enabled=program == "ours"):
            with autocast:
                losses = model(batch) if teacher is None else model(batch, teacher)
            sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if teacher is not None:
            teacher.update(model, 0.999)

    return run


def build_inference(short_side: int, options: list[str]) -> Callable[[], None]:
    """Detection of one image with 100 masks of the original size."""
    import torch

    model = build_model(options[0], score_threshold=0.0).eval()
    if options[0] == "ours":
        model.to(memory_format=torch.channels_last)  # as segtrain.use.inference does
    batch = make_batch(short_side)[:1]
    batch[0] |= {"height": 480, "width": 640}
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled="bf16" in options)

    def run() -> None:
        with torch.inference_mode(), autocast:
            model(batch)

    return run


if __name__ == "__main__":
    main()
