"""Other people's files: what is unmistakable is read, anything else is named and left out."""

import base64
import json
import os
import threading
import unicodedata
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from test_data import deepeyes_rows, encoded, saved, write_parquet

from benchmarks import load_benchmark
from config import EvalConfig
from data import Sample, fingerprint, load, of_split
from eval import folder_fault, make_protocol, stored_form
from grading.judge import Judge, read_verdict
from loading.fields import read_boxes, read_options
from runlog.runs import store_answer
from safe.files import file_name, write_json
from select_data import read_config

GOOD = {"image": "a.png", "question": "Which colour is the tile?", "answer": "red"}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """mine(row, ...) or mine(raw=bytes): the samples of such a folder; mine.reasons: of the bad rows."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded())

    def make(*rows, raw=None):
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (folder / "rows.jsonl").write_bytes(lines if raw is None else raw)
        report = tmp_path / "runs" / "bad-rows-mine.jsonl"
        report.unlink(missing_ok=True)
        samples = load("mine")
        bad = map(json.loads, report.read_text().splitlines()) if report.exists() else ()
        make.reasons = [row["reason"] for row in bad]
        return samples

    make.folder = folder
    return make


# --------------------------------------------------------------------------------------------------
# Options.


@pytest.mark.parametrize(
    ("options", "answer", "read", "gold"),
    [
        (["red", "blue"], "B", ("red", "blue"), "blue"),
        ("['red', 'blue']", "A", ("red", "blue"), "red"),
        ('["red", "blue"]', "blue", ("red", "blue"), "blue"),
        ({"A": "red", "B": "blue"}, "B", ("red", "blue"), "blue"),
        ({"b": "blue", "a": "red"}, "b", ("red", "blue"), "blue"),
        ({"A": "red", "B": "blue", "C": None, "D": None}, "A", ("red", "blue"), "red"),
        (["A．red", "B．blue"], "A", ("red", "blue"), "red"),
        (["A) red", "B) blue"], "B", ("red", "blue"), "blue"),
        (["(A) red", "(B) blue"], "(A) red", ("red", "blue"), "red"),
        (["A. Smith", "A. Jones"], "A. Jones", ("A. Smith", "A. Jones"), "A. Jones"),
        ([3, 4, 5], 4, ("3", "4", "5"), "4"),
        (["Yes", "No"], True, ("Yes", "No"), "Yes"),
        (["True", "False"], False, ("True", "False"), "False"),
        ([], "red", (), "red"),
        (None, "red", (), "red"),
    ],
)
def test_options_as_people_have_them(mine, options, answer, read, gold):
    (sample,) = mine(GOOD | {"options": options, "answer": answer})
    assert (sample.options, sample.answer) == (read, gold)


@pytest.mark.parametrize(
    ("options", "answer", "reason"),
    [
        ("red or blue", "red", "options are a list"),
        ({"first": "red", "second": "blue"}, "red", "letters are not A, B, C"),
        ({"A": "red", "C": "blue"}, "red", "letters are not A, B, C"),
        ({"A": "red", "B": None, "C": "blue"}, "red", "no text and no number: None"),
        (["red", None], "red", "no text and no number: None"),
        (["red", ""], "red", "no text and no number: ''"),
        ([["A", "red"], ["B", "blue"]], "red", "no text and no number: ['A', 'red']"),
        ([{"label": "A", "text": "red"}], "red", "no text and no number"),
        (["B) red", "A) blue"], "red", "letters of their own, B, A"),
        (["red", "blue"], "dog", "'dog' is none of the options"),
        (["red", "blue"], "D", "'D' is none of the options"),
        (["red", "blue"], 1, "'1' is none of the options"),
        (["red", "blue"], ["red", "D"], "'D' is none of the options"),
        (True, "red", "options are a list"),
        (7, "red", "options are a list"),
    ],
)
def test_options_that_mean_nothing_are_named(mine, options, answer, reason):
    assert len(mine(GOOD, GOOD | {"options": options, "answer": answer})) == 1
    assert len(mine.reasons) == 1 and reason in mine.reasons[0]


# --------------------------------------------------------------------------------------------------
# Ids.


def test_rows_of_one_id_stay_apart(mine, capsys):
    rows = [GOOD | {"id": "pic", "question": f"{number}?"} for number in range(3)]
    samples = mine(*rows, GOOD | {"id": "pic#2"}, GOOD | {"id": 7}, GOOD | {"id": "7"})
    assert [s.id for s in samples] == ["pic", "pic#2#", "pic#3", "pic#2", "7", "7#2"]
    assert "3 rows share an id" in capsys.readouterr().out
    assert len(of_split(samples, "train")) + len(of_split(samples, "test")) == 6


def test_files_of_one_name_do_not_share_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part in ("one", "two"):
        (tmp_path / "d" / part).mkdir(parents=True)
        write_parquet(tmp_path / "d" / part / "train.parquet", deepeyes_rows(3))
    assert len({sample.id for sample in load("deepeyes", root="d")}) == 6


def test_a_stored_image_has_a_name_of_its_own(tmp_path):
    names = [
        "a/b",
        "a b",
        "a-b",
        "x" * 150 + "1",
        "y" * 70 + "x" * 80,
        "\U0001f600" * 90,
        "..",
        "é",
        "e\u0301",
    ]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(files) and file_name("row-7") == "row-7"
    for file in files:
        (tmp_path / f"{file}-forced-12.png").write_bytes(b"")
    assert len(list(tmp_path.iterdir())) == len(files)
    assert "file_name" in store_answer.__code__.co_names


def test_answers_to_changed_rows_are_not_gone_on_with(mine, tmp_path):
    rows = [GOOD | {"id": "pic", "question": f"Is {number} red?", "answer": "yes"} for number in range(3)]
    config = EvalConfig(data="mine", arms="off")
    before = stored_form(make_protocol(config, mine(*rows)))
    after = stored_form(make_protocol(config, mine(*rows[:2], rows[2] | {"answer": "no"})))
    write_json(tmp_path / "protocol.json", before)
    assert folder_fault(tmp_path, before) == "" and "(rows differ)" in folder_fault(tmp_path, after)
    write_json(tmp_path / "protocol.json", {key: before[key] for key in before if key != "rows"})
    assert folder_fault(tmp_path, after) == ""  # of a folder of before nobody knows


# --------------------------------------------------------------------------------------------------
# Images.


def drawing(mode: str) -> Image.Image:
    """A black square on what is transparent."""
    image = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((10, 10, 30, 30), fill=(0, 0, 0, 255))
    return image.convert(mode) if mode != "P" else image.quantize(4, Image.Quantize.FASTOCTREE)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "GIF"), ("RGBA", "WEBP"), ("RGBA", "TIFF")],
)
def test_what_is_transparent_becomes_white(mode, kind):
    settings = {"lossless": True} if kind == "WEBP" else {}
    image = Sample("s", saved(drawing(mode), kind, **settings), "?", "A").open()
    assert image.mode == "RGB"
    assert image.getpixel((2, 2)) == (255, 255, 255) and image.getpixel((20, 20)) == (0, 0, 0)


def test_half_transparent_colours_are_mixed_with_white():
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 128))
    assert Sample("s", saved(image, "PNG"), "?", "A").open().getpixel((1, 1)) == (227, 127, 127)
    opaque = Image.new("RGBA", (4, 4), (200, 30, 10, 255))
    assert Sample("s", saved(opaque, "PNG"), "?", "A").open().getpixel((1, 1)) == (200, 30, 10)


@pytest.mark.parametrize(
    ("most", "kind", "dtype"),
    [
        (4095, "PNG", np.uint16),
        (65535, "PNG", np.uint16),
        (255, "PNG", np.uint16),
        (4095, "TIFF", np.uint16),
        (1.0, "TIFF", np.float32),
        (255.0, "TIFF", np.float32),
        (3e6, "TIFF", np.int32),
        (9000, "PPM", np.uint16),
    ],
)
def test_deep_images_show_what_they_hold(most, kind, dtype):
    ramp = np.linspace(0, most, 256).astype(dtype)[None].repeat(8, 0)
    image = Sample("s", saved(Image.fromarray(ramp), kind), "?", "A").open()
    grey = np.asarray(image)[4, :, 0].astype(int)
    assert (grey[0], grey[-1]) == (0, 255) and abs(grey - np.arange(256)).max() <= 1


def test_a_narrow_range_is_spread_and_nan_is_refused():
    kelvin = np.full((8, 8), 29_000, np.uint16)  # a thermal image: hundredths of a degree
    kelvin[2:5, 2:5] = 31_000
    image = Sample("s", saved(Image.fromarray(kelvin), "PNG"), "?", "A").open()
    assert image.convert("L").getextrema() == (0, 255)
    broken = np.array([[0, np.nan]], np.float32)
    with pytest.raises(ValueError, match="NaN"):
        Sample("s", saved(Image.fromarray(broken), "TIFF"), "?", "A").open()


@pytest.mark.parametrize("box", [(500, 10, 900, 40), (-40, 0, 20, 20), (10, 10, 20, 70), (70, 0, 90, 9)])
def test_a_box_that_leaves_the_image_is_named(box):
    with pytest.raises(ValueError, match="leaves the|lies outside the"):
        Sample("s", encoded((64, 48)), "?", "A", boxes=(box,)).open()
    assert Sample("s", encoded((64, 48)), "?", "A", boxes=((10, 10, 64.5, 48),)).open()


# --------------------------------------------------------------------------------------------------
# Paths.


def test_no_row_reads_outside_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "private" / "passport.png"
    for folder in ("private", "d", "h", "s", "l"):
        (tmp_path / folder).mkdir()
    secret.write_bytes(encoded())
    outside = [{"bytes": None, "path": str(secret)}]
    write_parquet(tmp_path / "d" / "t.parquet", deepeyes_rows(1) | {"images": [outside]})
    row = {"question": "Which?", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "A"}
    row |= {"category": "single", "cycle_category": 0, "image": "../private/passport.png"}
    write_parquet(tmp_path / "h" / "hr_bench_4k.parquet", {key: [value] for key, value in row.items()})
    seal = {"conversations": [{"value": "Which?"}, {"value": "red"}], "target_instances": []}
    for name in ("GQA_data", "llava_focus_data", "spatial_relation_data", "vaw_attribute_data"):
        (tmp_path / "s" / f"{name}.json").write_text(
            json.dumps([seal | {"image": "../private/passport.png"}])
        )
    logic = {"question": "Which?", "answer": "A", "skill": ["x"], "imagename": "../private/passport.png"}
    (tmp_path / "l" / "dataset.json").write_text(json.dumps({"v1_1": logic}))
    loaders = {
        "deepeyes": lambda **more: load("deepeyes", root="d", **more),
        "hrbench4k": lambda **more: load_benchmark("hrbench4k", "h", **more),
        "seal": lambda **more: load("seal", root="s", **more),
        "logicvista": lambda **more: load_benchmark("logicvista", "l", **more),
    }
    for loader in loaders.values():
        with pytest.raises(ValueError, match="outside the folder"):
            loader()[0].open()
        assert loader(allow_outside=True)[0].open().size == (64, 48)


def test_images_that_a_parquet_names_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d" / "part").mkdir(parents=True)
    (tmp_path / "d" / "part" / "b.png").write_bytes(encoded((30, 30)))
    (tmp_path / "b.png").write_bytes(encoded((70, 70)))  # in the working directory
    cell = [{"bytes": None, "path": "b.png"}]
    write_parquet(tmp_path / "d" / "part" / "t.parquet", deepeyes_rows(1) | {"images": [cell]})
    assert load("deepeyes", root="d")[0].open().size == (30, 30)


def test_a_snapshot_of_the_hub_is_made_of_links(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "datasets--lscpku--LogicVista"
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / "abc").write_bytes(encoded())
    row = {"question": "Which?", "answer": "A", "skill": ["x"], "imagename": "v1.png"}
    (cache / "blobs" / "def").write_text(json.dumps({"v1_1": row}))
    folder = cache / "snapshots" / ("1" * 40)
    (folder / "images").mkdir(parents=True)
    os.symlink("../../../blobs/abc", folder / "images" / "v1.png")
    os.symlink("../../blobs/def", folder / "dataset.json")
    assert load_benchmark("logicvista", str(folder))[0].open().size == (64, 48)


def test_names_are_no_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = {}
    for number, name in enumerate(["fig[1].png", "a*.png", "/etc/x.png", "?.png"]):
        rows[f"v{number}"] = {"question": "Which?", "answer": "A", "skill": ["x"], "imagename": name}
    (tmp_path / "l" / "images").mkdir(parents=True)
    (tmp_path / "l" / "images" / "fig[1].png").write_bytes(encoded((31, 31)))
    (tmp_path / "l" / "images" / "ab.png").write_bytes(encoded())
    (tmp_path / "l" / "dataset.json").write_text(json.dumps(rows))
    (sample,) = load_benchmark("logicvista", "l")
    assert sample.open().size == (31, 31)
    vstar = tmp_path / "v" / "direct_attributes"
    vstar.mkdir(parents=True)
    (tmp_path / "v" / "relative_position").mkdir()
    row = {"question": "Which?", "options": ["red", "blue"], "bbox": [[1, 1, 5, 5]]}
    for place in (vstar, vstar.parent / "relative_position"):
        (place / "a[1].json").write_text(json.dumps(row))
        (place / "a[1].jpg").write_bytes(encoded((33, 33), "JPEG"))
    assert {sample.open().size for sample in load_benchmark("vstar", "v")} == {(33, 33)}


# --------------------------------------------------------------------------------------------------
# Rows with several images, and images in other forms.


def test_a_question_has_one_image(mine, tmp_path):
    two = {"image": ["a.png", "a.png"]}
    marks = {"question": "<image>\n<image>\nWhich of the two is red?"}
    both = {"images": ["a.png"]}  # beside "image"
    assert len(mine(GOOD, GOOD | two, GOOD | marks, GOOD | both, GOOD | {"image": []})) == 1
    said = ["2 images", "2 marks <image>", "image and images", "0 images"]
    assert all(part in reason for part, reason in zip(said, mine.reasons)) and len(mine.reasons) == 4
    rows = deepeyes_rows(3)
    rows["images"][1] = rows["images"][1] * 2
    rows["prompt"][2][1]["content"] = "<image><image>Which of the two?"
    (tmp_path / "d").mkdir()
    write_parquet(tmp_path / "d" / "t.parquet", rows)
    assert [sample.id for sample in load("deepeyes", root="d")] == ["t-0"]


def test_images_in_other_forms(mine):
    text = base64.b64encode(encoded((50, 30))).decode()
    row = {key: value for key, value in GOOD.items() if key != "image"}
    images = [f"data:image/png;base64,{text}", text, {"bytes": text}, ["a.png"], {"path": "a.png"}]
    samples = mine(*(row | {"image": image} for image in images), row | {"images": ["a.png"]})
    assert [sample.open().size[0] for sample in samples] == [50, 50, 50, 64, 64, 64]
    broken = [
        ("is not fetched", "https://example.org/a.png"),
        ("base64", "data:image/png;base64,%%%"),
        ("no image", "b.png"),
        ("not 7", 7),
        ("lacks image", None),
        ("not None", {"url": "a.png"}),
        ("not ''", ""),
    ]
    assert len(mine(GOOD, *(row | {"image": image} for _, image in broken))) == 1
    for (said, _), reason in zip(broken, mine.reasons, strict=True):
        assert said in reason


# --------------------------------------------------------------------------------------------------
# Text.


LINE = json.dumps(GOOD | {"question": "Qué color?"}, ensure_ascii=False)


@pytest.mark.parametrize(
    "raw",
    [
        b"\xef\xbb\xbf" + f"{LINE}\n{LINE}\n".encode(),
        f"{LINE}\r\n{LINE}\r\n".encode(),
        f"{LINE}\n\n  \n{LINE}".encode(),
        f"{LINE}\n{LINE}\n".encode("utf-16"),
        f"[{LINE},\n {LINE}]\n".encode(),
        b"\xef\xbb\xbf" + json.dumps([json.loads(LINE)] * 2, indent=1).encode(),
    ],
    ids=["mark", "windows", "blank lines", "utf-16", "array", "array with a mark"],
)
def test_text_as_people_save_it(mine, raw):
    assert [sample.question for sample in mine(raw=raw)] == ["Qué color?"] * 2 and not mine.reasons


def test_one_wrong_byte_costs_one_row(mine):
    lines = [LINE.encode(), LINE.encode("latin-1"), b"{broken", b"[1, 2]", b"7", LINE.encode()]
    assert len(mine(raw=b"\n".join(lines))) == 2
    assert "byte 0xe9 at" in mine.reasons[0] and "save the file as UTF-8" in mine.reasons[0]
    assert all("a row is an object" in reason for reason in mine.reasons[2:]) and len(mine.reasons) == 4


@pytest.mark.parametrize("raw", [LINE.encode("utf-16-le"), b"[1, 2\n]x]", b"[" * 99_999 + b"]"])
def test_a_file_that_is_no_text_is_named(mine, raw):
    with pytest.raises(ValueError, match=r"rows.jsonl is no UTF-8 text"):
        mine(raw=raw)


def test_names_of_files_as_systems_write_them(mine):
    composed = unicodedata.normalize("NFC", "café.png")
    decomposed = unicodedata.normalize("NFD", "café.png")
    (mine.folder / decomposed).write_bytes(encoded())
    (mine.folder / "sub").mkdir()
    (mine.folder / "sub" / unicodedata.normalize("NFC", "ü.png")).write_bytes(encoded())
    names = [composed, decomposed, "sub/" + unicodedata.normalize("NFD", "ü.png"), "sub\\ü.png"]
    assert len(mine(*(GOOD | {"image": name} for name in names))) == 4


def test_a_question_loses_its_mark_and_nothing_else(mine):
    texts = ["<image>\nWhich?", "Which? <image>", "  is |x|<|y| ?", "x<|y|>3", "Is <image_1> red?"]
    read = [sample.question for sample in mine(*(GOOD | {"question": text} for text in texts))]
    assert read == ["Which?", "Which?", *texts[2:]]
    assert len(mine(GOOD, GOOD | {"question": "What is <|image_pad|>?"})) == 1


# --------------------------------------------------------------------------------------------------
# Answers and boxes.


def test_answers_as_people_have_them(mine):
    answers = [3, 2.5, True, False, ["red", "crimson"], [3, "three"], -1, "['red', 'crimson']", "[1, 2]"]
    read = [(s.answer, *s.accepted) for s in mine(*(GOOD | {"answer": answer} for answer in answers))]
    assert read == [
        ("3",),
        ("2.5",),
        ("yes", "true"),
        ("no", "false"),
        ("red", "crimson"),
        ("3", "three"),
        ("-1",),
        ("red", "crimson"),
        ("[1, 2]",),
    ]
    broken = [None, "", " ", [], {}, {"text": "red"}, [["red"]], [None], float("nan"), float("inf")]
    assert len(mine(GOOD, *(GOOD | {"answer": answer} for answer in broken))) == 1
    assert len(mine.reasons) == len(broken)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ([[1, 2, 30, 40]], ((1, 2, 30, 40),)),
        ([1, 2, 30, 40], ((1, 2, 30, 40),)),
        ({"bbox_2d": [1, 2, 30, 40]}, ((1, 2, 30, 40),)),
        ([{"bbox_2d": [1, 2, 30, 40], "label": "cup"}], ((1, 2, 30, 40),)),
        ([{"x1": 1, "y1": 2, "x2": 30, "y2": 40}], ((1, 2, 30, 40),)),
        ("[[1, 2, 30, 40], [5, 6, 7, 8]]", ((1, 2, 30, 40), (5, 6, 7, 8))),
        ([0.5, 0.5, 1.5, 1.5], ((0.5, 0.5, 1.5, 1.5),)),
        ([], ()),
        (None, ()),
    ],
)
def test_boxes_as_people_have_them(value, read):
    assert read_boxes(value) == read


@pytest.mark.parametrize(
    "value",
    [
        [[0.1, 0.1, 0.3, 0.3]], [0, 0, 1, 1], [[1, 2, 30]], [[1, 2, 30, "40"]], [[True, 2, 30, 40]], 7, "cup",
        {"x": 1, "y": 2, "width": 3, "height": 4}, [[[1, 2], [3, 4]]], [[1, 2, 30, None]], {}, True,
    ],
)  # fmt: skip
def test_boxes_of_another_frame_or_form_are_named(mine, value):
    assert len(mine(GOOD, GOOD | {"boxes": value})) == 1 and len(mine.reasons) == 1


def test_boxes_and_texts_of_benchmarks_are_checked_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = {"question": "Which?", "options": ["red", "blue"], "bbox": [[1, 2, 30, 40]]}
    broken = [{"bbox": [[0.1, 0.1, 0.2, 0.2]]}, {"options": [["A", "red"]]}, {"options": "false"}]
    broken += [{"options": ["red", None]}, {"question": ""}, {"question": None}, {"question": 1}]
    for number, change in enumerate([{}, {"options": "['red', 'blue']"}, *broken]):
        for folder in ("direct_attributes", "relative_position"):
            place = tmp_path / "v" / folder
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}.json").write_text(json.dumps(good | change))
            (place / f"{number}.jpg").write_bytes(encoded(kind="JPEG"))
    samples = load_benchmark("vstar", "v")
    assert {(sample.options, sample.boxes) for sample in samples} == {(("red", "blue"), ((1, 2, 31, 42),))}
    assert len(samples) == 4
    logic = {"question": "Which?", "skill": ["x"], "imagename": unicodedata.normalize("NFC", "é.png")}
    (tmp_path / "l" / "images").mkdir(parents=True)
    (tmp_path / "l" / "images" / unicodedata.normalize("NFD", "é.png")).write_bytes(encoded())
    rows = {str(number): logic | {"answer": answer} for number, answer in enumerate(["A", [], {}, None, ""])}
    (tmp_path / "l" / "dataset.json").write_text("\ufeff" + json.dumps(rows), encoding="utf-8")
    assert [sample.id for sample in load_benchmark("logicvista", "l")] == ["0"]


def test_reasons_are_sentences(mine):
    mine(GOOD, GOOD | {"question": "half \ud800"}, GOOD | {"question": ["a"]}, GOOD | {"options": {"A": {}}})
    assert "half of a character" in mine.reasons[0] and "Error" not in "".join(mine.reasons)


def test_keys_of_other_layouts_are_named(mine, capsys):
    others = [{"bbox": [1, 2, 30, 40]}, {"box": [[1, 2, 3, 4]]}, {"choices": ["red", "blue"]}]
    assert len(mine(GOOD | {"width": 640, "bbox": None}, *(GOOD | other for other in others))) == 1
    assert "'bbox' is not read: it is called 'boxes'" in mine.reasons[0]
    assert "'choices' is not read: it is called 'options'" in mine.reasons[2]
    assert "nothing reads: 'width' in 1 rows" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------
# Any JSON in any field.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2000) | st.floats() | st.text(max_size=12)
    | st.sampled_from(["red", "A", "blue", "a.png", "../a.png", "<image>"])
    | st.sampled_from(["[1, 2, 30, 40]", "['red', 'blue']"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["A", "B", "text", "bbox_2d", "bytes", "path"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
FIELDS = (
    "image",
    "images",
    "question",
    "answer",
    "options",
    "boxes",
    "id",
    "source",
    "tool",
    "meta",
    "split",
)
ROW = st.fixed_dictionaries({}, optional={name: JSON for name in (*FIELDS, "bbox", "accepted")})


@given(changes=ROW)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_json_is_read_as_it_stands_or_named(mine, changes):
    """What is kept is asked as the file has it: every part of it stands in the row."""
    row = GOOD | changes
    samples = mine(GOOD, row)
    assert len(samples) + len(mine.reasons) == 2
    if len(samples) == 1:
        return
    sample = samples[1]
    assert sample.question in row["question"]
    assert row["question"].replace("<image>", "").strip() == sample.question.strip()
    said = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    for gold in (sample.answer, *sample.accepted):
        boolean = gold in ("yes", "no", "true", "false") and any(isinstance(each, bool) for each in said)
        assert boolean or sample.options or gold in [*map(str, said), *map(str, row.get("accepted") or ())]
    assert set((sample.answer, *sample.accepted)) <= set(sample.options) or not sample.options
    assert all(option in repr(row["options"]) for option in sample.options if option.isalnum())
    options = row.get("options")
    if isinstance(options, dict) and set(options.values()) == {None}:
        options = None  # parquet's way to say that this row has none of the letters
    assert bool(sample.options) == bool(options not in (None, [], {}, "", "[]"))
    held = repr(row.get("boxes"))
    assert all(f"{value:g}" in held or repr(value) in held for box in sample.boxes for value in box)
    assert bool(sample.boxes) == bool(row.get("boxes") not in (None, [], "", "[]", "{}"))
    assert sample.tool is (True if row.get("tool") is None else row["tool"])
    assert row.get("bbox") in (None, [], "") or sample.boxes
    assert sample.source == ("mine" if row.get("source") is None else row["source"])


@example(field="gold", value="['red', 'blue']")
@example(field="gold", value="[1, 2, 30, 40]")
@given(field=st.sampled_from(["images", "question", "gold", "source"]), value=JSON)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_json_in_the_papers_columns(tmp_path, monkeypatch, field, value):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir(exist_ok=True)
    rows = deepeyes_rows(2)
    if field == "question":
        rows["prompt"][1][1]["content"] = value
    elif field == "gold":
        rows["reward_model"][1]["ground_truth"] = value
    elif field == "images":
        rows["images"][1] = value
    else:
        rows["data_source"][1] = value
    try:
        write_parquet(tmp_path / "d" / "t.parquet", rows)
    except Exception:  # arrow has one type for a column
        return
    samples = load("deepeyes", root="d")
    assert len(samples) in (1, 2)
    if len(samples) == 2 and field == "gold":
        if value == "['red', 'blue']":  # texts in a list that is itself a text: accepted answers
            value = ["red", "blue"]
        golds = [str(each) for each in (value if isinstance(value, list) else [value])]
        assert samples[1].answer in golds or isinstance(value, bool)


SEAL_ROW = {
    "conversations": [{"value": "<image>\nWhich colour is it?"}, {"value": "red"}],
    "image": "a.png",
    "target_instances": [{"bbox": [1, 2, 30, 40]}],
}
VSTAR_ROW = {"question": "Which colour is it?", "options": ["red", "blue"], "bbox": [[1, 2, 30, 40]]}
LOGIC_ROW = {"question": "Which colour is it?", "answer": "A", "skill": ["x"], "imagename": "a.png"}


def load_seal(row: dict) -> list[Sample]:
    for name in ("GQA_data", "llava_focus_data", "spatial_relation_data", "vaw_attribute_data"):
        write_json(Path(f"{name}.json"), [SEAL_ROW, row] if name == "GQA_data" else [])
    return load("seal", root=".")


def load_vstar(row: dict) -> list[Sample]:
    for place, content in (("direct_attributes", VSTAR_ROW), ("relative_position", row)):
        Path(place).mkdir(exist_ok=True)
        Path(place, "a.png").write_bytes(encoded())
        write_json(Path(place, "a.json"), content)
    return load_benchmark("vstar", ".")


def load_logicvista(row: dict) -> list[Sample]:
    write_json(Path("dataset.json"), {"good": LOGIC_ROW, "other": row})
    return load_benchmark("logicvista", ".")


@pytest.mark.parametrize(
    ("loader", "good"), [(load_seal, SEAL_ROW), (load_vstar, VSTAR_ROW), (load_logicvista, LOGIC_ROW)]
)
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_json_in_public_layouts(tmp_path, monkeypatch, loader, good, data):
    """One field of a row is anything: the row is asked as it stands, or left out; the other row stays."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded())
    field = data.draw(st.sampled_from(list(good)))
    row = good | {field: data.draw(JSON)}
    samples = loader(row)
    assert 1 <= len(samples) <= 2
    if len(samples) == 1:
        return
    if loader is load_seal:
        human, model = row["conversations"][:2]
        assert samples[1].question == human["value"].replace("<image>", "").strip()
        assert samples[1].answer == model["value"]
    elif loader is load_logicvista:
        assert samples[1].question.startswith(row["question"].replace("<image>", "").strip())
        assert samples[1].answer == str(row["answer"])
    else:
        sample = next(each for each in samples if each.id.startswith("relative_position"))
        assert sample.question.startswith(row["question"].replace("<image>", "").strip())
        if isinstance(row["options"], list):
            assert sample.options == tuple(map(str, row["options"]))


def test_what_is_read_of_a_list_that_is_text():
    """Nothing is run, and nothing takes long."""
    for text in ("__import__('os').getcwd()", "[" * 5000, "[x for x in (1, 2)]", "{'A': red}", "A, B"):
        with pytest.raises(ValueError, match="options are a list of texts"):
            read_options(text)


# --------------------------------------------------------------------------------------------------
# A judge that thinks, and advice.


@pytest.fixture
def judge(tmp_path):
    """judge(replies): a Judge at a server whose n-th reply is the n-th text, the last one for ever after."""
    servers = []

    def make(*replies):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def send(self, content):
                data = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                self.send({"data": [{"id": "m"}]})

            def do_POST(self):
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked.append(content["max_tokens"])
                reply = replies[min(len(asked), len(replies)) - 1]
                self.send({"choices": [{"message": {"content": reply}}]})

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        made = Judge(f"http://127.0.0.1:{server.server_port}/v1", tmp_path / "judge.jsonl")
        made.asked = asked
        return made

    yield make
    for server in servers:
        server.shutdown()


def test_a_judge_that_thinks_first_gets_room(judge):
    thinker = judge("<think>\nOkay, the", "<think>\nThe same thing.</think>\n\nYes", "<think>No?</think>no")
    assert thinker("Which?", "a dog", "a hound") is True and thinker("Which?", "a dog", "a cat") is False
    assert thinker.asked == [8, 2048, 2048] and thinker.missed == 0 and thinker.say_missed() == ""


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Yes.", True), ("**No**", False), ("Judgement: 1", True), ("0", False), ("True", True),
        ("The final answer is yes.", True), ("<think></think>no", False), ("They differ.\n\nNo.", False),
        ("Yes, they mean the same.", True), ("1 or 0?", None), ("yes or no?", None), ("True or false?", None),
        ("1. First I compare them", None), ("1 out of 10", None), ("-1", None), ("no idea", None), ("", None),
        ("Yesterday", None), ("<think>Yes, the", None), ("10", None), ("0.5", None),
    ],
)  # fmt: skip
def test_verdicts(reply, verdict):
    assert read_verdict(reply) is verdict


def test_a_judge_that_gives_no_verdict_is_named(judge, capsys):
    mute = judge("<think>\nOkay, the")
    assert mute("Which?", "a dog", "a hound") is False and mute("Which?", "a dog", "a cat") is False
    assert mute.missed == 2 and not mute.down and mute.asked == [8, 2048, 2048]
    assert capsys.readouterr().out.count("gives no verdict, yes or no, but '<think>") == 1
    assert mute.say_missed().startswith("2 answers were graded by the rules alone, as the judge was away or")
    silent = judge(None)  # a thought apart, and no content
    assert silent("Which?", "a dog", "a hound") is False and silent.unread


def test_advice_names_what_there_is(mine, here, tmp_path):
    mine(GOOD, GOOD | {"question": "What else?"})
    said = here("eval.py", "--data", "mine", "--arms", "off", "--threads", "1", "--out", "r", cwd=tmp_path)
    assert said.returncode == 2 and "--split all" in said.stderr
    (tmp_path / "runs" / "tiny-toy").mkdir(parents=True)
    for name, flags in (
        ("model.py", ["runs/tiny-to", "--out", "m"]),
        ("eval.py", ["--model", "runs/tiny-to"]),
    ):
        said = here(name, *flags, cwd=tmp_path)
        assert said.returncode == 2 and "Traceback" not in said.stderr and "hf download" not in said.stderr
        assert f"no such folder: runs/tiny-to; did you mean {Path('runs/tiny-toy')}?" in said.stderr


def test_a_resume_over_changed_rows_says_so(tmp_path, capsys):
    from training.run import tell_changed_rows

    rows = [Sample(str(number), b"", "?", "A") for number in range(3)]
    tell_changed_rows(tmp_path / "data.json", rows)
    tell_changed_rows(tmp_path / "data.json", rows)
    assert capsys.readouterr().out == ""
    tell_changed_rows(tmp_path / "data.json", rows[:2])
    assert "the rows have changed since this run began: 3 then, 2 now" in capsys.readouterr().out


def test_a_selection_of_changed_rows_needs_another_folder(mine, here, tmp_path):
    (tmp_path / "s" / "parts").mkdir(parents=True)
    stored = asdict(read_config(["--data", "mine", "--limit", "4", "--out", "s"]))
    mine(*(GOOD | {"question": f"{number}?"} for number in range(4)))
    row = {"id": "rows-0", "source": "mine", "kind": None, "verifiable": True, "p_look": 0.5, "p_crop": None}
    write_json(tmp_path / "s" / "parts" / "000000.json", [row])
    unchanged = fingerprint(load("mine", limit=4))
    for rows, said in ((unchanged, "1 of 1 kept"), ("00000000", "changed since s was scored")):
        write_json(tmp_path / "s" / "args.json", stored | {"rows": rows})
        done = here("select_data.py", "--out", "s", "--rescore", cwd=tmp_path)
        assert said in done.stdout + done.stderr
