"""The `data` and `dataloader` parts of a config. Light: a config is checked before torch loads."""

from __future__ import annotations

from dataclasses import dataclass, field

from segtrain.errors import TrainingConfigError


@dataclass(kw_only=True)
class PhotometricSettings:
    """How colours of the student's image are perturbed; its teacher and colour losses see none.

    Attributes:
        jitter_probability: chance of a jitter of brightness, contrast, saturation and hue, 0..1.
        grayscale_probability: chance of a grey picture.
        blur_probability: chance of a Gaussian blur.
        brightness: largest relative change, as for contrast and saturation, 0..1.
        hue: largest turn, as a share of the circle, 0..0.5.
        blur_sigma: least and largest deviation of the blur, pixels.
    """

    jitter_probability: float = 0.0
    grayscale_probability: float = 0.0
    blur_probability: float = 0.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    blur_sigma: list[float] = field(default_factory=lambda: [0.1, 2.0])

    def __post_init__(self) -> None:
        """Check the ranges."""
        largest = dict.fromkeys(
            ("jitter_probability", "grayscale_probability", "blur_probability"), 1.0
        )
        largest |= dict.fromkeys(("brightness", "contrast", "saturation"), 1.0) | {"hue": 0.5}
        for name, most in largest.items():
            if not 0 <= getattr(self, name) <= most:
                raise TrainingConfigError(
                    f"dataloader.train.augmentation.photometric.{name}={getattr(self, name)} "
                    f"is not in 0..{most:g}"
                )
        if len(self.blur_sigma) != 2 or not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise TrainingConfigError(
                f"dataloader.train.augmentation.photometric.blur_sigma={self.blur_sigma}: give the "
                "least and the largest deviation, above 0"
            )

    @property
    def probabilities(self) -> tuple[float, float, float]:
        """Chances of a jitter, of a grey picture and of a blur."""
        return self.jitter_probability, self.grayscale_probability, self.blur_probability


@dataclass(kw_only=True)
class AugmentationSettings:
    """How a training image is cropped, resized and flipped, and how its colours change.

    Attributes:
        short_sides: one of these is drawn for the shorter side, in pixels.
        max_size: the longer side is at most this many pixels.
        flip_probability: of a horizontal flip, 0..1.
        crop_fraction: lower bound of the share of each side that a random crop keeps, in (0, 1];
            1 means no crop.
        photometric: of the student's colours; off by default.
    """

    short_sides: list[int] = field(default_factory=lambda: [640, 672, 704, 736, 768, 800])
    max_size: int = 1333
    flip_probability: float = 0.5
    crop_fraction: float = 1.0
    photometric: PhotometricSettings = field(default_factory=PhotometricSettings)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.short_sides or min(self.short_sides) < 1:
            raise TrainingConfigError(
                f"dataloader.train.augmentation.short_sides={self.short_sides}: "
                "name at least one size of at least 1 pixel"
            )
        if not 0 <= self.flip_probability <= 1:
            raise TrainingConfigError(
                f"dataloader.train.augmentation.flip_probability={self.flip_probability} "
                "is not in 0..1"
            )
        if not 0 < self.crop_fraction <= 1:
            raise TrainingConfigError(
                f"dataloader.train.augmentation.crop_fraction={self.crop_fraction} is not in (0, 1]"
            )


@dataclass(kw_only=True)
class DataSettings:
    """Where images and boxes lie, and what to do with bad ones.

    Attributes:
        name: short name for logs and reports.
        train_json: COCO file to train on.
        train_images: folder of its images.
        test_json: COCO file to evaluate on; its masks are read by the evaluation only.
        test_images: folder of its images.
        test_cityscapes_truth: Cityscapes' gtFine/<split>; when set, evaluation adds the AP of
            Cityscapes' own tool.
        num_classes: number of classes of the model; must equal the file's. None takes the training
            file's, and with weights theirs.
        use_masks: let annotated masks supervise training (off: boxes only).
        bad_boxes: `drop` or `refuse` boxes that are not finite, empty, inverted or outside.
        keep_images_without_boxes: train on images without boxes as well.
    """

    name: str = "coco"
    train_json: str = "data/coco/annotations/instances_train2017.json"
    train_images: str = "data/coco/train2017"
    test_json: str = "data/coco/annotations/instances_val2017.json"
    test_images: str = "data/coco/val2017"
    test_cityscapes_truth: str | None = None
    num_classes: int | None = 80
    use_masks: bool = False
    bad_boxes: str = "drop"
    keep_images_without_boxes: bool = False


@dataclass(kw_only=True)
class TrainLoaderSettings:
    """How training batches are made.

    Attributes:
        num_workers: processes that prepare samples; 0 prepares them in the training process.
        prefetch_batches: batches that each worker prepares ahead.
        keep_in_memory: keep decoded images and depth maps, in each worker: for small data sets.
        augmentation: crop, resize, flip.
    """

    num_workers: int = 2
    prefetch_batches: int = 2
    keep_in_memory: bool = False
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)


@dataclass(kw_only=True)
class InferenceSizeSettings:
    """How images are resized for evaluation, prediction and labelling.

    Attributes:
        short_side: pixels.
        max_size: bound on the longer side, pixels.
    """

    short_side: int = 800
    max_size: int = 1333
