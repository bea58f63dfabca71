# ruff: noqa: E501 - the lines are as long as the tools write them
"""Boxes in the tools' own forms: what each becomes, and what their usual defects become."""

from __future__ import annotations

import json

import globox
import pytest
from PIL import Image

from pipeline.datasets.box_formats import detect_format, read_boxes
from pipeline.errors import UsageError

VOC = """<annotation verified="yes"><folder>im</folder><filename>{name}</filename>
<path>C:\\data\\im\\{name}</path><source><database>Unknown</database></source>
<size><width>{width}</width><height>50</height><depth>3</depth></size><segmented>0</segmented>
<object><name>dog</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>10</xmin><ymin>5</ymin><xmax>{right}</xmax><ymax>25</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
</object></annotation>"""

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><id>7</id><name>t</name><size>2</size>
<mode>annotation</mode><labels><label><name>car</name><color>#c06060</color><type>any</type>
<attributes></attributes></label><label><name>dog</name><attributes></attributes></label>
<label><name>unused</name><attributes></attributes></label></labels></task></meta>
<image id="3" name="im/a.jpg" subset="default" task_id="7" width="100" height="50">
<box label="dog" source="manual" occluded="0" xtl="10.00" ytl="5.00" xbr="40.00" ybr="25.00" z_order="0">
<attribute name="kind">x</attribute></box>
<box label="car" source="manual" occluded="0" xtl="10" ytl="10" xbr="30" ybr="20" rotation="90.0" z_order="0"/>
<polygon label="car" source="manual" occluded="0" points="1.0,2.0;5.0,2.5;3.0,9.0" z_order="0"/>
<mask label="dog" source="semi-auto" occluded="0" rle="1, 2, 1" left="4" top="6" width="2" height="2" z_order="0"/>
<polyline label="car" source="manual" occluded="0" points="1,2;3,4" z_order="0"/>
<tag label="dog" source="manual"></tag></image>
<image id="4" name="im/b.png" width="60" height="40"></image></annotations>"""

OPEN_IMAGES = """ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside
a,xclick,/m/0bt9lr,1,0.1,0.4,0.1,0.5,0,0,0,0,0
a,xclick,/m/0k4j,1,0.5,0.6,0.1,0.3,0,0,1,0,0
0011223344556677,xclick,/m/0k4j,1,0.5,0.6,0.1,0.3,0,0,0,0,0
"""


@pytest.fixture
def images(tmp_path):
    """im/a.jpg of 100×50, im/b.png of 60×40, im/sub/c.jpg stored lying: upright 50×100."""
    folder = tmp_path / "im"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (100, 50)).save(folder / "a.jpg")
    Image.new("RGB", (60, 40)).save(folder / "b.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (100, 50)).save(folder / "sub" / "c.jpg", exif=turned)
    return folder


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return path


def _boxes(boxes):
    """(file, class, box) of every annotation."""
    document = boxes.document()
    files = {image["id"]: image["file_name"] for image in document["images"]}
    names = {category["id"]: category["name"] for category in document["categories"]}
    return [
        (files[item["image_id"]], names[item["category_id"]], item["bbox"])
        for item in document["annotations"]
    ]


class TestYolo:
    def test_a_data_set_with_data_yaml_keeps_its_classes_and_their_order(self, tmp_path, images):
        root = tmp_path / "ds"
        _write(root / "data.yaml", "train: images\nnc: 3\nnames: [car, dog, cat]\n")
        _write(root / "labels" / "a.txt", "1 0.25 0.3 0.3 0.4\n0 0.5 0.5 1 1 0.87\n\n")
        _write(root / "labels" / "c.txt", "2 0.5 0.5 0.2 0.1\n")
        boxes = read_boxes(root, images)
        assert boxes.box_format == "yolo"
        assert boxes.names == ["car", "dog", "cat"]
        assert _boxes(boxes) == [
            ("a.jpg", "dog", [10, 5, 30, 20]),
            ("a.jpg", "car", [0, 0, 100, 50]),
            ("sub/c.jpg", "cat", [20, 45, 10, 10]),  # upright: 50 wide, 100 high
        ]
        assert boxes.notes["image without a label file; taken as having no object"] == 1
        assert len(boxes.images) == 3
        line = _write(tmp_path / "line.txt", "1 0.25 0.3 0.3 0.4")  # a blank line stops globox
        theirs = globox.Annotation.from_yolo_v5(line, image_size=(100, 50))
        assert theirs.boxes[0].ltrb == pytest.approx((10, 5, 40, 25))

    def test_names_by_number_polygons_and_lines_that_are_wrong(self, tmp_path, images):
        root = tmp_path / "ds"
        _write(root / "data.yaml", "names:\n  0: car\n  1: dog\n")
        lines = ["1 0.1 0.2 0.5 0.2 0.3 0.6", "0 10 20 30 40", "x 0.5 0.5 0.1 0.1", "0 0.5 0.5"]
        file = _write(root / "labels" / "a.txt", "\n".join(lines))
        boxes = read_boxes(root / "data.yaml", images)
        assert _boxes(boxes) == [("a.jpg", "dog", [10, 10, 40, 20])]
        assert [item["where"] for item in boxes.skipped] == [f"{file}:{n}" for n in (2, 3, 4)]
        assert "no share of the image" in boxes.skipped[0]["reason"]

    def test_two_images_of_one_name_find_their_labels_by_their_folders(self, tmp_path):
        for split, index in (("train", 0), ("val", 1)):
            folder = tmp_path / "images" / split
            folder.mkdir(parents=True)
            Image.new("RGB", (10, 10)).save(folder / "a.png")
            _write(tmp_path / "labels" / split / "a.txt", f"{index} .5 .5 .2 .2\n")
        _write(tmp_path / "classes.txt", "car\ndog\n")
        boxes = read_boxes(tmp_path, tmp_path / "images")
        assert [item[:2] for item in _boxes(boxes)] == [
            ("train/a.png", "car"),
            ("val/a.png", "dog"),
        ]

    def test_a_label_file_without_its_image_is_named(self, tmp_path, images):
        file = _write(tmp_path / "l" / "gone.txt", "0 .5 .5 .1 .1\n")
        _write(tmp_path / "l" / "a.txt", "0 .5 .5 .1 .1\n")
        boxes = read_boxes(tmp_path / "l", images)
        assert boxes.names == ["0"]
        assert [item["where"] for item in boxes.skipped] == [str(file)]


class TestVoc:
    def test_files_of_labelimg(self, tmp_path, images):
        for stem, name, width in (("a", "a.jpg", 100), ("b", "old-name.png", 0)):
            _write(tmp_path / "x" / f"{stem}.xml", VOC.format(name=name, width=width, right=40))
        boxes = read_boxes(tmp_path / "x", images)
        assert boxes.box_format == "voc"
        assert _boxes(boxes) == [
            ("a.jpg", "dog", [10, 5, 30, 20]),
            ("b.png", "dog", [10, 5, 30, 20]),
        ]
        assert (boxes.images[1]["width"], boxes.images[1]["height"]) == (60, 40)
        assert any("size of 0" in note for note in boxes.notes)
        theirs = globox.Annotation.from_pascal_voc(tmp_path / "x" / "a.xml")
        assert theirs.boxes[0].ltrb == (10, 5, 40, 25)

    def test_a_damaged_file_and_a_box_without_numbers_leave_the_others(self, tmp_path, images):
        _write(tmp_path / "x" / "a.xml", VOC.format(name="a.jpg", width=100, right=40))
        _write(tmp_path / "x" / "b.xml", VOC.format(name="b.png", width=60, right="wide"))
        _write(tmp_path / "x" / "d.xml", "<annotation><filename>")
        boxes = read_boxes(tmp_path / "x", images)
        assert len(boxes.annotations) == 1
        assert "xmax is 'wide'" in boxes.skipped[0]["reason"]
        assert "not XML" in boxes.skipped[1]["reason"]

    def test_an_inverted_box_is_left_to_the_check_of_all_formats(self, tmp_path, images):
        file = _write(tmp_path / "a.xml", VOC.format(name="a.jpg", width=100, right=4))
        assert _boxes(read_boxes(file, images))[0][2] == [10, 5, -6, 20]

    def test_entities_are_refused(self, tmp_path, images):
        bomb = '<!DOCTYPE a [<!ENTITY b "c">]><annotation/>'
        with pytest.raises(UsageError, match="entities"):
            read_boxes(_write(tmp_path / "a.xml", bomb), images)


class TestLabelMe:
    def _file(self, tmp_path, shapes, **changes):
        document = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": "..\\im\\a.jpg",
                    "imageData": None, "imageHeight": 50, "imageWidth": 100}  # fmt: skip
        return _write(tmp_path / "l" / "a.json", document | changes)

    def _shape(self, kind, points, label="dog"):
        return {"label": label, "points": points, "group_id": None, "description": "",
                "shape_type": kind, "flags": {}, "mask": None}  # fmt: skip

    def test_shapes_become_boxes(self, tmp_path, images):
        file = self._file(
            tmp_path,
            [
                self._shape("rectangle", [[40, 25], [10, 5]]),
                self._shape("polygon", [[1, 2], [9, 3], [4, 8]], "cat"),
                self._shape("circle", [[50, 25], [53, 29]]),
                self._shape("point", [[5, 5]]),
            ],
        )
        boxes = read_boxes(tmp_path / "l", images)
        assert boxes.box_format == "labelme"
        assert boxes.names == ["cat", "dog"]
        assert _boxes(boxes) == [
            ("a.jpg", "dog", [10, 5, 30, 20]),
            ("a.jpg", "cat", [1, 2, 8, 6]),
            ("a.jpg", "dog", [45, 20, 10, 10]),
        ]
        assert [item["where"] for item in boxes.skipped] == [f"{file}: shape 4"]
        theirs = globox.Annotation.from_labelme(file)
        assert theirs.boxes[0].ltrb == (10, 5, 40, 25)

    def test_a_mask_includes_the_pixel_of_its_last_corner(self, tmp_path, images):
        # As LabelMe draws it: whole[y1 : y2 + 1, x1 : x2 + 1] = mask.
        self._file(tmp_path, [self._shape("mask", [[10, 5], [39, 24]])])
        assert _boxes(read_boxes(tmp_path / "l", images)) == [("a.jpg", "dog", [10, 5, 30, 20])]

    def test_shapes_of_one_class_and_group_are_one_object(self, tmp_path, images):
        first = self._shape("rectangle", [[10, 5], [20, 10]]) | {"group_id": 0}
        second = self._shape("polygon", [[30, 20], [40, 25], [30, 25]]) | {"group_id": 0}
        others = [second | {"label": "cat"}, second | {"group_id": 1}, second | {"group_id": None}]
        self._file(tmp_path, [first, *others, second])
        boxes = read_boxes(tmp_path / "l", images)
        assert _boxes(boxes) == [
            ("a.jpg", "dog", [10, 5, 30, 20]),
            ("a.jpg", "cat", [30, 20, 10, 5]),
            ("a.jpg", "dog", [30, 20, 10, 5]),
            ("a.jpg", "dog", [30, 20, 10, 5]),
        ]
        assert boxes.annotations[0]["area"] == 600
        assert sum("one box around the group" in note for note in boxes.notes) == 1

    def test_an_image_that_is_absent_stays_under_its_name(self, tmp_path, images):
        self._file(tmp_path, [self._shape("rectangle", [[1, 1], [2, 2]])], imagePath="gone.jpg")
        (tmp_path / "l" / "a.json").rename(tmp_path / "l" / "gone.json")
        assert _boxes(read_boxes(tmp_path / "l", images))[0][0] == "gone.jpg"


class TestCvat:
    def test_an_export_for_images(self, tmp_path, images):
        file = _write(tmp_path / "t" / "annotations.xml", CVAT)
        boxes = read_boxes(tmp_path / "t", images)
        assert boxes.box_format == "cvat"
        assert boxes.names == ["car", "dog", "unused"]
        assert _boxes(boxes) == [
            ("a.jpg", "dog", [10, 5, 30, 20]),
            ("a.jpg", "car", [15, 5, 10, 20]),  # turned by 90° about its centre
            ("a.jpg", "car", [1, 2, 4, 7]),
            ("a.jpg", "dog", [4, 6, 2, 2]),
        ]
        assert [image["cvat_id"] for image in boxes.images] == ["3", "4"]
        assert "polyline" in boxes.skipped[0]["where"]
        theirs = globox.AnnotationSet.from_cvat(file)
        assert theirs["im/a.jpg"].boxes[0].ltrb == (10, 5, 40, 25)

    def test_shapes_of_group_0_are_not_grouped(self, tmp_path, images):
        def grouped(number):
            text = CVAT.replace('<box label="dog"', f'<box label="dog" group_id="{number}"')
            text = text.replace('<mask label="dog"', f'<mask label="dog" group_id="{number}"')
            return _boxes(read_boxes(_write(tmp_path / "a.xml", text), images))

        assert len(grouped(0)) == 4
        assert grouped(1) == [
            ("a.jpg", "dog", [4, 5, 36, 20]),
            ("a.jpg", "car", [15, 5, 10, 20]),
            ("a.jpg", "car", [1, 2, 4, 7]),
        ]

    def test_a_video_task_says_what_to_export(self, tmp_path, images):
        text = '<annotations><version>1.1</version><track id="0" label="x"/></annotations>'
        with pytest.raises(UsageError, match=r"CVAT for images 1\.1"):
            read_boxes(_write(tmp_path / "a.xml", text), images)


class TestLabelStudio:
    def _region(self, kind="rectanglelabels", **value):
        value = {"x": 10, "y": 10, "width": 30, "height": 40, "rotation": 0, kind: ["dog"]} | value
        return {"id": "Dx_aB91ISN", "type": kind, "from_name": "label", "to_name": "image",
                "original_width": 100, "original_height": 50, "image_rotation": 0,
                "value": value}  # fmt: skip

    def test_an_export_as_json(self, tmp_path, images):
        older = {"id": 1, "was_cancelled": False, "updated_at": "2026-01-01", "result": []}
        newer = older | {
            "updated_at": "2026-02-01",
            "result": [
                self._region(),
                self._region(x=20, y=20, width=20, height=20, rotation=90),
                self._region("polygonlabels", points=[[1, 2], [9, 2], [5, 10]]),
                self._region("brushlabels", format="rle", rle=[0]),
                self._region("keypointlabels"),
                {"id": "Dx_aB91ISN", "type": "choices", "value": {"choices": ["sharp"]}},
            ],
        }
        tasks = [
            {"id": 11, "data": {"image": "/data/upload/2/1f2e3d4c-a.jpg"}, "predictions": [],
             "annotations": [newer, older]},
            {"id": 12, "data": {"img": "/data/local-files/?d=im%2Fb.png"},
             "annotations": [older | {"was_cancelled": True}]},
        ]  # fmt: skip
        boxes = read_boxes(_write(tmp_path / "p.json", tasks), images)
        assert boxes.box_format == "label-studio"
        assert _boxes(boxes) == [
            ("a.jpg", "dog", [10, 5, 30, 20]),
            ("a.jpg", "dog", [10, 10, 10, 20]),  # 20×10 turned about its top left corner
            ("a.jpg", "dog", [1, 1, 8, 4]),
        ]
        assert boxes.images[0]["label_studio"]["data"] == tasks[0]["data"]
        assert boxes.images[1]["file_name"] == "b.png"
        assert "brush ends after 1 bytes" in boxes.skipped[0]["reason"]
        assert "keypointlabels has no box" in boxes.skipped[1]["reason"]
        assert boxes.notes["task with several annotations; the latest is taken"] == 1

    def test_predictions_count_where_nobody_has_annotated_the_task(self, tmp_path, images):
        prediction = {"model_version": "m", "result": [self._region()]}
        skipped = {"id": 1, "was_cancelled": True, "result": []}
        tasks = [
            {"data": {"image": "a.jpg"}, "annotations": [], "predictions": [7, prediction]},
            {"data": {"image": "b.png"}, "annotations": [skipped], "predictions": [prediction]},
        ]
        boxes = read_boxes(_write(tmp_path / "p.json", tasks), images)
        assert _boxes(boxes) == [("a.jpg", "dog", [10, 5, 30, 20])]
        assert boxes.notes["task without an annotation; its latest prediction is taken"] == 1

    def test_regions_of_one_id_are_one_object_only_under_a_parent(self, tmp_path, images):
        points = {"points": [[10, 10], [20, 10], [20, 20]]}
        part = {"points": [[40, 50], [60, 50], [60, 60]]}
        regions = [self._region("polygonlabels", **value) for value in (points, part)]
        task = {"data": {"image": "a.jpg"}, "annotations": [{"result": regions}]}
        path = _write(tmp_path / "p.json", [task])
        assert len(_boxes(read_boxes(path, images))) == 2
        regions[1] |= {"id": "other", "parentID": regions[0]["id"]}
        boxes = read_boxes(_write(path, [task]), images)
        assert _boxes(boxes) == [("a.jpg", "dog", [10, 5, 50, 25])]

    def test_an_export_as_json_min(self, tmp_path, images):
        region = {"x": 10, "y": 10, "width": 30, "height": 40, "rotation": 0,
                  "rectanglelabels": ["dog"], "original_width": 100, "original_height": 50}  # fmt: skip
        tasks = [{"image": "/data/upload/2/1f2e3d4c-a.jpg", "id": 11, "label": [region]}]
        assert _boxes(read_boxes(_write(tmp_path / "p.json", tasks), images)) == [
            ("a.jpg", "dog", [10, 5, 30, 20])
        ]


class TestOpenImages:
    def test_rows_of_the_images_at_hand(self, tmp_path, images):
        file = _write(tmp_path / "o" / "train-annotations-bbox.csv", OPEN_IMAGES)
        _write(tmp_path / "o" / "class-descriptions-boxable.csv", "/m/0bt9lr,Dog\n/m/0k4j,Car\n")
        for path in (file, file.parent):
            boxes = read_boxes(path, images)
            assert boxes.box_format == "openimages"
            assert _boxes(boxes) == [
                ("a.jpg", "Dog", [10, 5, 30, 20]),
                ("a.jpg", "Car", [50, 5, 10, 10]),
            ]
            assert [item["iscrowd"] for item in boxes.annotations] == [0, 1]
            assert boxes.notes["row of an image that is not in the folder; left out"] == 1


class TestDetection:
    @pytest.mark.parametrize(
        ("name", "text", "expected"),
        [
            ("a.json", {"images": [], "annotations": [], "categories": []}, "coco"),
            ("a.json", {"shapes": [], "imagePath": "a.jpg"}, "labelme"),
            ("a.json", [{"data": {}}], "label-studio"),
            ("a.xml", CVAT, "cvat"),
            ("a.xml", "<annotation/>", "voc"),
            ("a.csv", OPEN_IMAGES, "openimages"),
            ("data.yaml", "names: [a]", "yolo"),
            ("classes.txt", "a", "yolo"),
        ],
    )
    def test_a_file_tells_its_format_alone_and_in_its_folder(self, tmp_path, name, text, expected):
        file = _write(tmp_path / "x" / name, text)
        assert detect_format(file) == detect_format(file.parent) == expected

    def test_an_unknown_file_is_refused_with_the_known_formats(self, tmp_path):
        with pytest.raises(UsageError, match="--boxes-format coco"):
            detect_format(_write(tmp_path / "a.bin", "x"))
        with pytest.raises(UsageError, match="unpack it first"):
            detect_format(_write(tmp_path / "export.zip", "x"))

    def test_an_export_without_a_box_is_refused_with_its_first_reason(self, tmp_path, images):
        file = _write(tmp_path / "labels" / "a.txt", "0 5 5 5 5\n")
        with pytest.raises(UsageError, match=r"no box.*a\.txt:1: 5 is no share"):
            read_boxes(file.parent, images)
