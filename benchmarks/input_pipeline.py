"""Whether the input pipeline feeds a training step of 100 ms with two workers.

Decode, hash, depth read, augmentation, of 640×480 photos to short sides 640 to 800, batch 2,
once without and once with the teacher's view. A pretended step sleeps; what it then waits for its
batch is the starvation. CPU seconds per image, beside it, do not depend on other load.

    python benchmarks/input_pipeline.py
    python benchmarks/input_pipeline.py --annotations instances.json --images photos/
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from depthcache import DepthCache, image_key
from depthcache.format.segment_format import canonical_json, fingerprint_folder
from depthcache.format.shard_planning import plan_segment
from depthcache.segments.writer import seal_segment, write_shard
from depthcache.storage.local_folder import LocalStore
from segtrain.data.coco_boxes import BoxAnnotation, ImageRecord, read_coco_boxes
from segtrain.data.loader import iterate_batches
from segtrain.data.mapper import TeacherView, TrainingMapper
from segtrain.data.sampler import ResumableBatchSampler
from segtrain.data.settings import AugmentationSettings, TrainLoaderSettings

DEPTH_SHAPE = (384, 512)
BATCH_SIZE = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", help="COCO file of real photos; else photos are made")
    parser.add_argument("--images", help="folder of the photos")
    parser.add_argument("--photos", type=int, default=32, help="how many at most")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--step-seconds", type=float, default=0.1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.annotations:
            dataset = read_coco_boxes(arguments.annotations, arguments.images)
            records = dataset.records[: arguments.photos]
        else:
            records = make_photos(Path(folder), arguments.photos)
        fingerprint = make_cache(Path(folder) / "cache", [Path(r.path) for r in records])
        depth = DepthCache.open(str(Path(folder) / "cache"), fingerprint=fingerprint)
        for name, view in (("student", None), ("with teacher", TeacherView(first_position=0))):
            mapper = TrainingMapper(AugmentationSettings(), seed=0, depth=depth, teacher_view=view)
            started = time.process_time()
            for position, record in enumerate(records):
                mapper(record, position)
            per_image = (time.process_time() - started) / len(records)
            waits = measure_waits(records, mapper, arguments.steps, arguments.step_seconds)
            need = BATCH_SIZE * per_image / 2
            print(
                f"{name:13s} {1000 * per_image:5.1f} CPU ms per image: two workers make a batch in "
                f"{1000 * need:5.1f} ms (x{need / arguments.step_seconds:.2f} of a step); waited "
                f"median {1000 * statistics.median(waits):.1f} ms, "
                f"worst {1000 * max(waits):.1f} ms",
                flush=True,
            )


def measure_waits(
    records: list[ImageRecord], mapper: TrainingMapper, num_steps: int, step_seconds: float
) -> list[float]:
    """Seconds that each step waits for its batch, after the workers have started."""
    sampler = ResumableBatchSampler(len(records), batch_size=BATCH_SIZE, seed=0)
    batches = iterate_batches(records, mapper, sampler, TrainLoaderSettings(num_workers=2))
    for _ in range(4):
        next(batches)
    waits = []
    for _ in range(num_steps):
        time.sleep(step_seconds)
        started = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - started)
    return waits


def make_photos(folder: Path, count: int) -> list[ImageRecord]:
    """JPEG files of blotches with noise, with fifteen boxes each."""
    generator = np.random.default_rng(0)
    records = []
    for index in range(count):
        blotches = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        photo = np.asarray(Image.fromarray(blotches).resize((640, 480), Image.Resampling.BICUBIC))
        noisy = np.clip(photo + generator.normal(0, 6, photo.shape), 0, 255).astype(np.uint8)
        path = folder / f"{index}.jpg"
        Image.fromarray(noisy).save(path, quality=92)
        corners = generator.random((15, 2)) * (400, 300)
        boxes = np.concatenate((corners, corners + 20 + generator.random((15, 2)) * 120), axis=1)
        records.append(
            ImageRecord(
                image_id=index,
                path=str(path),
                file_name=path.name,
                height=480,
                width=640,
                annotations=tuple(
                    BoxAnnotation(box_xyxy=tuple(box), category=0) for box in boxes.tolist()
                ),
            )
        )
    return records


def make_cache(root: Path, paths: list[Path]) -> str:
    """A sealed cache of smooth maps with noise, of the size that DPT predicts."""
    root.mkdir()
    fingerprint = {"model": "benchmark", "format_version": 1}
    folder = fingerprint_folder(fingerprint)
    store = LocalStore(root)
    store.put(f"{folder}/fingerprint.json", canonical_json(fingerprint))
    generator = np.random.default_rng(0)
    slope = np.linspace(0, 1, DEPTH_SHAPE[0], dtype=np.float32)[:, None]
    maps = {
        image_key(path.read_bytes()): slope + generator.random(DEPTH_SHAPE, dtype=np.float32) / 50
        for path in paths
    }
    plan = plan_segment(dict.fromkeys(maps, DEPTH_SHAPE), fingerprint=folder, shard_rows=64)
    prefix = f"{folder}/segments/{plan.segment_id}"
    for shard in plan.shards:
        write_shard(store, prefix, shard, maps, {}, shard_rows=64, bits=12)
    seal_segment(store, prefix, plan, bits=12, provenance={})
    return folder


if __name__ == "__main__":
    main()
