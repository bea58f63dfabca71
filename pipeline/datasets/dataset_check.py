"""`data check`: count and name everything in a COCO data set that training handles or refuses."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.errors import UsageError
from segtrain.data.coco_findings import FINDING_KINDS, Finding, shorten
from segtrain.data.coco_reader import ImageRecord, find_absence_of_boxes, read_coco_file
from segtrain.data.image_files import find_image_file, is_file, missing_files


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """What `check_dataset` found.

    Attributes:
        num_images: entries in `images`.
        num_boxes: entries in `annotations`.
        num_categories: entries in `categories`.
        findings: all of them, in the order of the file.
    """

    num_images: int
    num_boxes: int
    num_categories: int
    findings: list[Finding]

    def count_kinds(self) -> dict[str, int]:
        """Findings per kind, in the order of `FINDING_KINDS`; kinds without one are left out."""
        counter = collections.Counter(finding.kind for finding in self.findings)
        return {kind: counter[kind] for kind in FINDING_KINDS if counter[kind]}

    @property
    def num_left_out(self) -> int:
        """Findings that training leaves out."""
        return sum(finding.treatment == "left out" for finding in self.findings)

    @property
    def num_refused(self) -> int:
        """Findings that training refuses."""
        return sum(finding.treatment == "refused" for finding in self.findings)


def check_dataset(
    annotations: Path,
    images: Path | None,
    *,
    cache: str | None = None,
    fingerprint: str | None = None,
    decodes: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetReport:
    """Check a COCO file and its images.

    Args:
        annotations: COCO JSON.
        images: folder of the images; None leaves the files unchecked.
        cache: root of the depth cache that training would read; None leaves depth unchecked.
        fingerprint: which model's maps of the cache.
        decodes: decode every image rather than read its header only.
        progress: called with images done and in total.

    Raises:
        DatasetError: the file is no COCO JSON.
        UsageError: the folder does not exist.
    """
    reading = read_coco_file(annotations, images or "", masks=True)
    findings = [*reading.findings, *find_absence_of_boxes(reading)]
    if images is not None:
        if not images.is_dir():
            raise UsageError(f"image folder {images} does not exist")
        findings += _check_files(reading.records, decodes, progress)
        if cache is not None:
            findings += _check_depth(reading.records, cache, fingerprint)
    return DatasetReport(
        num_images=len(reading.document["images"]),
        num_boxes=len(reading.document["annotations"]),
        num_categories=len(reading.document["categories"]),
        findings=findings,
    )


def _check_files(
    records: Sequence[ImageRecord], decodes: bool, progress: Callable[[int, int], None] | None
) -> list[Finding]:
    findings: list[Finding] = []
    with ThreadPoolExecutor(max_workers=2) as pool:
        for done, found in enumerate(
            pool.map(lambda record: _check_file(record, decodes), records), start=1
        ):
            findings += found
            if progress is not None:
                progress(done, len(records))
    return findings + _find_duplicate_bytes(records)


def _check_file(record: ImageRecord, decodes: bool) -> list[Finding]:
    missing = missing_files([(record.image_id, record.path, record.file_name)])
    if missing:
        return missing

    def found(kind: str, detail: str) -> list[Finding]:
        name = shorten(record.file_name)
        return [Finding(kind=kind, detail=detail, image_id=record.image_id, file_name=name)]

    try:
        width, height = read_image_size(find_image_file(record.path), decodes=decodes)
    except (OSError, ValueError) as error:
        return found("unreadable_file", str(error))
    if (width, height) != (record.width, record.height):
        stated = f"{record.width}×{record.height}"
        return found("wrong_image_size", f"stated {stated}, the file has {width}×{height}")
    return []


def _check_depth(
    records: Sequence[ImageRecord], cache: str, fingerprint: str | None
) -> list[Finding]:
    from depthcache import DepthCache, image_key

    keys = {
        record.path: image_key(file.read_bytes())
        for record in records
        if is_file(file := find_image_file(record.path))
    }
    absent = set(DepthCache.open(cache, fingerprint=fingerprint).missing(set(keys.values())))
    return [
        Finding(
            kind="missing_depth",
            detail=f"no map for sha256 {keys[record.path]} in {cache}",
            image_id=record.image_id,
            file_name=record.file_name,
        )
        for record in records
        if keys.get(record.path) in absent
    ]


def read_image_size(path: Path, *, decodes: bool) -> tuple[int, int]:
    """Width and height of an image in pixels, EXIF orientation applied.

    Args:
        path: image file.
        decodes: decode the pixels too, by the function that both stages use.

    Raises:
        ValueError, OSError: the file does not decode.
    """
    from depthcache.image_decoding import decode_image
    from depthcache.image_decoding import read_image_size as header_size

    if decodes:
        height, width = decode_image(path.read_bytes()).shape[:2]
        return int(width), int(height)
    height, width = header_size(path)
    return width, height


def _find_duplicate_bytes(records: Sequence[ImageRecord]) -> list[Finding]:
    by_size: dict[int, list[tuple[str, Path]]] = collections.defaultdict(list)
    for name, path in {record.file_name: record.path for record in records}.items():
        file = find_image_file(path)
        if is_file(file):
            by_size[file.stat().st_size].append((name, file))
    findings = []
    for files in by_size.values():
        if len(files) < 2:
            continue
        first_with: dict[str, str] = {}
        for name, file in files:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            if digest in first_with:
                detail = f"same bytes as {first_with[digest]}"
                findings.append(
                    Finding(kind="duplicate_image_bytes", detail=detail, file_name=name)
                )
            else:
                first_with[digest] = name
    return findings
