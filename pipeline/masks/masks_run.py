"""From boxes to masks: check → depth → adapt → label → write → review, each stage recorded.

A stage that is done with the same inputs is skipped. The adaptation and the journal of labels lie
in the run folder under a digest of what they depend on, so that nothing made under other inputs is
ever taken up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.datasets.image_lists import require_some_photos
from pipeline.datasets.mask_formats import has_masks, write_masks
from pipeline.masks.label_journal import LabelJournal
from pipeline.masks.label_photos import label_photos
from pipeline.masks.masks_document import MaskCounts, count_masks, write_labels
from pipeline.masks.masks_request import MasksRequest
from pipeline.masks.photo_depth import PhotoDepth, compute_photo_depth, open_photo_depth
from pipeline.masks.photo_labels import LABELLING, boxed_photos, learn_with_progress
from pipeline.masks.review_page import write_review_page
from pipeline.masks.reviewed_ids import read_reviewed_ids
from pipeline.masks.stage_settings import choose_stage_settings
from pipeline.output import format_seconds, to_jsonable
from pipeline.progress import ProgressReporter
from pipeline.resources import labeller_path
from pipeline.runs.manifest import (
    Manifest,
    locked_run,
    open_manifest,
    write_if_changed,
)
from pipeline.runs.stages import digest_file_list, tell_changes
from segtrain.data.coco_findings import FINDING_KINDS, Finding, require_usable
from segtrain.data.coco_reader import (
    CocoReading,
    find_absence_of_boxes,
    read_coco,
    read_usable_boxes,
)
from segtrain.data.image_files import find_image_file, is_file
from segtrain.run.resume_rules import describe_file

if TYPE_CHECKING:
    from segtrain.labeller import LabellerSettings

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MasksSummary:
    """What a run gave.

    Attributes:
        out: what was asked for.
        masks: the COCO file with exact masks in the run folder.
        review: the review page.
        counts: of boxes and masks.
        depth: which depth was used, in words.
        failures: photos and entries that could not be used, with a reason each.
        findings: what the check said of the boxes, kind → count.
        is_news: whether anything had to be done.
    """

    out: Path
    masks: Path
    review: Path
    counts: MaskCounts
    depth: str
    failures: list[dict[str, str]]
    findings: dict[str, int]
    is_news: bool

    @property
    def ok(self) -> bool:
        """Whether every box got a mask of its own."""
        return not (self.failures or self.counts.num_filled_boxes or self.counts.num_without_mask)


def run_masks(request: MasksRequest, command: Sequence[str]) -> MasksSummary:
    """Give every box a mask.

    Args:
        request: see there.
        command: arguments that `pipeline resume` repeats.

    Raises:
        UsageError, DatasetError: the boxes cannot be used; nothing was computed.
    """
    stages = ["check", "depth", "adapt", "label", "write", "review"]
    if not request.depth_model:
        stages.remove("depth")
    if request.redo is not None:
        stages.insert(stages.index("write"), "redo")
    with locked_run(request.run):
        manifest = open_manifest(request.run, command=command, config={}, stages=stages)
        run = _MasksRun(request, manifest)
        try:
            return run.go()
        except KeyboardInterrupt:
            logger.warning(
                "stopped during %s, which are kept; `pipeline resume %s` goes on from there",
                run.doing, request.run,
            )  # fmt: skip
            raise


class _MasksRun:
    """The stages of one run, in their order; each needs those before it."""

    def __init__(self, request: MasksRequest, manifest: Manifest) -> None:
        self.request, self.manifest, self.folder = request, manifest, manifest.folder
        self.failures: list[dict[str, str]] = []
        self.is_news = False
        self.doing = "the check of the boxes"

    def go(self) -> MasksSummary:
        """Run every stage that is not done."""
        self.reading, self.boxes_digest = self._check()
        self.records = [record for record in self.reading.records if record.annotations]
        self.photos = [find_image_file(record.path) for record in self.records]
        self.photos_digest = digest_file_list(self.photos)
        self.doing = "the depth maps"
        self.depth = self._find_depth()
        self.weights = self._adapt()
        self.journal = self._label()
        if self.request.redo is not None:
            self.weights, self.journal = self._redo(read_reviewed_ids(self.request.redo))
        document = self._write()
        self._review(document)
        return MasksSummary(
            out=self.request.out,
            masks=self.folder / "masks.json",
            review=self.request.review,
            counts=count_masks(document),
            depth=self.depth.describe(),
            failures=self.failures,
            findings=dict(self.manifest.stages["check"].counts),
            is_news=self.is_news,
        )

    def _check(self) -> tuple[CocoReading, str]:
        """Read the boxes; names all that cannot be used before anything is computed."""
        request = self.request
        with self.manifest.rechecking("check", {"images": str(request.images)}) as record:
            coco = request.coco or self._import_boxes()
            reading = read_usable_boxes(coco, request.images)
            require_usable(find_absence_of_boxes(reading), coco)
            with_boxes = [record for record in reading.records if record.annotations]
            require_some_photos(with_boxes, request.images)
            record.counts = _count_findings(reading.findings)
        for kind, count in record.counts.items():
            logger.info("check: %d × %s", count, FINDING_KINDS[kind].meaning)
        return reading, describe_file(str(coco))

    def _import_boxes(self) -> Path:
        from pipeline.datasets.box_formats import read_boxes

        assert self.request.boxes is not None
        imported = read_boxes(self.request.boxes, self.request.images, self.request.boxes_format)
        self.failures += [{"item": i["where"], "reason": i["reason"]} for i in imported.skipped]
        for note, count in (+imported.notes).items():
            logger.info("%s: %d × %s", imported.box_format, count, note)
        path = self.folder / "boxes.json"
        write_if_changed(path, json.dumps(imported.document()))
        return path

    def _find_depth(self) -> PhotoDepth:
        """Compute the depth that a model is given for, and open the cache."""
        request = self.request
        present = [path for path in self.photos if is_file(path)]
        if request.depth_mode == "off":
            return PhotoDepth()
        url, fingerprint = str(request.cache), None
        if request.depth_model:
            url, fingerprint, is_news = compute_photo_depth(
                request, self.manifest, present, self.photos_digest
            )
            self.is_news |= is_news
        depth = open_photo_depth(request.depth_mode, url, present, fingerprint=fingerprint)
        self.manifest.fingerprints["depth"] = str(depth.fingerprint)
        return depth

    def _adapt(self) -> Path:
        """Weights adapted to these boxes, or the starting ones when there is no time for that."""
        from pipeline.masks.salient_objects import digest_salient_set, draw_salient_crops
        from segtrain.labeller import WEIGHTS_NAME, adapt_labeller

        start = self.request.start or labeller_path()
        inputs = {
            "boxes": self.boxes_digest,
            "photos": self.photos_digest,
            "depth": self.depth.fingerprint,
            "start": describe_file(str(start)),
            "minutes": self.request.minutes,
            "salient": digest_salient_set(self.request),
        }
        given = {"depth": self.depth.mode, "seed": self.request.seed}
        settings = choose_stage_settings(
            self.manifest, "adapt", inputs, self.records, start, **given
        )
        inputs["settings"] = to_jsonable(settings)
        folder = self.folder / f"labeller-{_digest(inputs)}"
        weights = folder / WEIGHTS_NAME if self.request.minutes else start
        if self.manifest.is_done("adapt", inputs) and weights.is_file():
            logger.info("adapt: done before, %s", weights)
            return weights
        self.is_news = True
        tell_changes(self.manifest, "adapt", inputs)
        with self.manifest.running("adapt", inputs) as record:
            if self.request.minutes <= 0:
                record.outputs = {"weights": str(start)}
                return start
            crops = draw_salient_crops(self.request, settings, start)
            weights, iterations = self._learn(
                adapt_labeller, settings, folder, start=start, known_crops=crops
            )
            num_boxes = sum(len(photo.annotations) for photo in self.records)
            record.counts = {"iterations": iterations, "boxes": num_boxes}
            record.outputs = {"weights": str(weights)}
        return weights

    def _learn(
        self, learn: Callable[..., Path], settings: LabellerSettings, folder: Path, **given: Any
    ) -> tuple[Path, int]:
        """Weights that `learn` makes in the folder within the minutes, and its iterations."""
        folder.mkdir(exist_ok=True)
        photos, minutes = boxed_photos(self.records, self.depth), self.request.minutes
        given |= {"minutes": minutes, "num_processes": self.request.processes}
        return learn_with_progress(
            minutes,
            settings.warmup_iterations,
            self._say,
            lambda tell: learn(photos, settings, folder, on_progress=tell, **given),
            self.manifest.progress_file,
        )

    def _redo(self, ids: set[Any]) -> tuple[Path, LabelJournal]:
        """Learn from the masks that were left, and draw those anew that were marked."""
        from pipeline.masks import masks_redo
        from segtrain.labeller import WEIGHTS_NAME

        named = masks_redo.find_positions(self.reading.document["annotations"], ids)
        base = masks_redo.find_base(self.manifest, self.journal, named)
        inputs = {
            "drawn": describe_file(str(self.journal.path)),
            "labels": describe_file(str(base.path)),
            "weights": describe_file(str(self.weights)),
            "marked": sorted(named),
            "minutes": self.request.minutes,
        }
        given = {"depth": self.depth.mode, "seed": self.request.seed}
        settings = choose_stage_settings(
            self.manifest, "redo", inputs, self.records, self.weights, **given
        )
        inputs["settings"] = to_jsonable(settings)
        folder = self.folder / f"labeller-{_digest(inputs)}"
        merged = LabelJournal(self.folder / f"redone-{_digest(inputs)}.jsonl")
        weights = folder / WEIGHTS_NAME
        if self.manifest.is_done("redo", inputs) and weights.is_file() and merged.path.is_file():
            return weights, merged
        self.is_news = True
        tell_changes(self.manifest, "redo", inputs)
        with self.manifest.running("redo", inputs) as record:
            masks = {"entries": list(base.entries()), "named": named}
            weights, iterations = self._learn(
                masks_redo.learn_from_the_others, settings, folder, start=self.weights, **masks
            )
            again = [r for r in self.records if any(a.position in named for a in r.annotations)]
            fresh: dict[int, dict[str, Any]] = {}
            with contextlib.closing(
                label_photos(again, weights, self.depth, self.request.processes)
            ) as drawn:
                for photo, labels in zip(again, drawn, strict=True):
                    if labels.failure is not None:
                        logger.warning("%s keeps its masks: %s", photo.file_name, labels.failure)
                    fresh |= {item["position"]: item for item in labels.objects}
            num_changed = masks_redo.merge_labels(base, fresh, named, merged)
            record.counts = {
                "iterations": iterations, "marked": len(named), "changed": num_changed,
            }  # fmt: skip
            redone = describe_file(str(merged.path))
            record.outputs = {"weights": str(weights), "labels": redone}
        logger.info("redo: %d of %d marked masks changed", num_changed, len(named))
        return weights, merged

    def _label(self) -> LabelJournal:
        """Labels of every photo in the journal."""
        inputs = {
            "weights": describe_file(str(self.weights)),
            "boxes": self.boxes_digest,
            "photos": self.photos_digest,
            "depth": self.depth.fingerprint,
            "depth_mode": self.depth.mode,
            "labelling": LABELLING,
        }
        journal = LabelJournal(self.folder / f"labels-{_digest(inputs)}.jsonl")
        if self.manifest.is_done("label", inputs) and journal.path.is_file():
            self.failures += self.manifest.stages["label"].failures
            logger.info("label: done before, %s", journal.path)
            return journal
        self.is_news = True
        tell_changes(self.manifest, "label", inputs)
        kept = {int(entry["photo"]) for entry in journal.entries()}
        left = [index for index in range(len(self.records)) if index not in kept]
        failures: list[dict[str, str]] = []
        num_done = len(kept)
        with (
            self.manifest.running("label", inputs) as stage,
            journal,
            ProgressReporter("label", "photos", kept_in=self.manifest.progress_file) as bar,
            contextlib.closing(
                label_photos(
                    [self.records[index] for index in left],
                    self.weights,
                    self.depth,
                    self.request.processes,
                )
            ) as drawn,
        ):
            for index, labels in zip(left, drawn, strict=True):
                if labels.failure is None:
                    journal.append(index, labels.objects, has_depth=labels.has_depth)
                else:
                    item = self.records[index].file_name
                    failures.append({"item": item, "reason": labels.failure})
                num_done += 1
                self.doing = f"labelling, {num_done} of {len(self.records)} photos"
                bar.update(num_done, len(self.records))
            stage.counts = {"photos": len(self.records) - len(failures), "failed": len(failures)}
            stage.failures = failures
        self.failures += failures
        return journal

    def _write(self) -> dict[str, Any]:
        """The COCO file in the run folder, and what was asked for."""
        request = self.request
        usable = [item.position for record in self.records for item in record.annotations]
        document = write_labels(
            self.reading.document,
            self.journal.entries(),
            [*usable, *self.reading.left_out],
            disjoint=request.disjoint,
            min_score=request.min_score,
            facts={
                "labeller": describe_file(str(self.weights)),
                "minutes": request.minutes,
                "depth": self.depth.describe(),
                "depth_fingerprint": self.depth.fingerprint,
            },
        )
        target = self.folder / "masks.json"
        write_if_changed(target, json.dumps(to_jsonable(document)))
        inputs = {
            "masks": describe_file(str(target)),
            "out": str(request.out.resolve()),
            "format": request.mask_format,
            "polygons": request.polygons,
        }
        if not (self.manifest.is_done("write", inputs) and has_masks(request.out)):
            self.is_news = True
            with self.manifest.running("write", inputs) as record:
                write_masks(
                    document,
                    request.out,
                    request.mask_format,
                    polygons=request.polygons,
                    images=request.images,
                )
                record.outputs = {"out": str(request.out)}
        return document

    def _review(self, document: Mapping[str, Any]) -> None:
        path, counts = self.request.review, count_masks(document)
        inputs = {
            "masks": describe_file(str(self.folder / "masks.json")),
            "page": str(path.resolve()),
        }
        if self.manifest.is_done("review", inputs) and path.is_file():
            return
        self.is_news = True
        with (
            self.manifest.running("review", inputs) as record,
            ProgressReporter("review", "photos", kept_in=self.manifest.progress_file) as bar,
        ):
            written = write_review_page(
                path,
                document,
                self.request.images,
                title=f"Masks for {(self.request.coco or self.request.boxes or Path()).name}",
                facts={
                    "masks": f"{counts.num_masks} of {counts.num_boxes} boxes",
                    "filled boxes": str(counts.num_filled_boxes),
                    "depth": self.depth.describe(),
                    "adapted": f"{self.request.minutes:g} min" if self.request.minutes else "no",
                },
                command=self.manifest.command,
                read_depth=self.depth.read_of_bytes if self.depth.cache else None,
                on_progress=bar.update,
            )
            record.outputs = {"page": str(path)}
            record.counts = {"objects": written.num_objects, "left_out": written.num_left_out}

    def _say(self, doing: str) -> None:
        self.doing = doing


def _count_findings(findings: Sequence[Finding]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding.kind] = counts.get(finding.kind, 0) + 1
    return counts


def _digest(inputs: Mapping[str, Any]) -> str:
    """Short name for what something depends on."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]


def plan_masks(request: MasksRequest) -> dict[str, Any]:
    """What a run would do; writes nothing.

    Raises:
        UsageError, DatasetError: the boxes cannot be used.
    """
    if request.coco is not None:
        reading = read_usable_boxes(request.coco, request.images)
    else:
        from pipeline.datasets.box_formats import read_boxes

        assert request.boxes is not None
        imported = read_boxes(request.boxes, request.images, request.boxes_format)
        reading = read_coco(imported.document(), request.images)
        require_usable(reading.findings, request.boxes)
    require_usable(find_absence_of_boxes(reading), request.coco or request.boxes or "")
    with_boxes = [record for record in reading.records if record.annotations]
    return {
        "dry_run": True,
        "num_photos": len(with_boxes),
        "num_missing_photos": sum(not is_file(find_image_file(r.path)) for r in with_boxes),
        "num_boxes": sum(len(record.annotations) for record in with_boxes),
        "findings": _count_findings(reading.findings),
        "depth": request.depth_mode,
        "depth_model": request.depth_model,
        "cache": request.cache,
        "adaptation": format_seconds(60 * request.minutes) if request.minutes else "none",
        "run": str(request.run),
        "out": str(request.out),
        "review": str(request.review),
    }
