"""Samples and the toy world."""

import io
from collections import Counter

import numpy as np
import pytest
from conftest import call
from PIL import Image

import tools
from data import Sample, load
from toy.world import COLOURS, LETTERS, MIXTURE, SIZE, random_scene, render


def test_the_toy_is_drawn_from_its_seed():
    first, again, other = load("toy", limit=8), load("toy", limit=8), load("toy", limit=8, seed=1)
    assert [s.question for s in first] == [s.question for s in again] and first[3].id == again[3].id
    assert np.array_equal(first[3].open(), again[3].open())
    assert not np.array_equal(first[3].open(), other[3].open())
    assert {s.id for s in first}.isdisjoint(s.id for s in load("toy", split="test", limit=8))
    assert not np.array_equal(first[0].open(), load("toy", split="test", limit=1)[0].open())


def test_targets_and_kinds():
    """Every sample names its kind and boxes; the boxes hold the tiles' colours, in original pixels."""
    samples = load("toy", limit=300)
    assert {"read", "compare", "glance"} == {s.meta["kind"] for s in samples}
    for sample in samples[:60]:
        colours = [c for c in COLOURS if c in sample.question]
        expected = {"read": 1, "compare": 2, "glance": 1}[sample.meta["kind"]]
        assert len(sample.boxes) == len(sample.meta["glyphs"]) == expected
        picture = sample.open()
        assert picture.size == (SIZE, SIZE)
        for box in sample.boxes:
            corner = picture.getpixel((int(box[0]) + 3, int(box[1]) + 3))
            assert corner in [COLOURS[c] for c in colours]


def test_answers_are_balanced():
    """No answer is a good guess: letters are even, and so are yes and no, left and right, top and bottom."""
    samples = load("toy", limit=2000)
    by_kind = {
        k: Counter(s.answer for s in samples if s.meta["kind"] == k) for k in ("read", "compare", "glance")
    }
    assert set(by_kind["read"]) == set(LETTERS)
    assert max(by_kind["read"].values()) < 1.4 * sum(by_kind["read"].values()) / len(LETTERS)
    assert 0.44 < by_kind["compare"]["yes"] / by_kind["compare"].total() < 0.56
    sides = by_kind["glance"]
    for one, other in (("left", "right"), ("top", "bottom")):
        assert 0.42 < sides[one] / (sides[one] + sides[other]) < 0.58


def test_the_mixture_holds_the_rows_a_selection_must_find():
    samples = load("toy-mixture", limit=400)
    kinds = Counter(s.meta["kind"] for s in samples)
    assert set(kinds) == set(MIXTURE)
    legible = next(s for s in samples if s.meta["kind"] == "legible")
    x1, _, x2, _ = legible.meta["glyphs"][0]
    assert (x2 - x1) * 112 / SIZE > 20  # px in the first look
    blank = next(s for s in samples if s.meta["kind"] == "blank")
    assert len(blank.open().crop(tuple(int(v) for v in blank.boxes[0])).getcolors()) == 1


def test_a_region_is_drawn_as_it_is_in_the_whole():
    import random

    scene = random_scene(random.Random(3))
    whole = np.asarray(render(scene))
    assert np.array_equal(render(scene, (100, 300, 420, 700)), whole[300:700, 100:420])


def test_the_letter_is_gone_in_the_first_look():
    """At 112 px a letter is about 4 px high, in the close-up over 25."""
    sample = next(s for s in load("toy", limit=20) if s.meta["kind"] == "read")
    view = tools.View(sample.open(), tools.fit((SIZE, SIZE), 112 * 112))
    assert view.shown == (112, 112)
    x1, _, x2, _ = sample.meta["glyphs"][0]
    assert (x2 - x1) * 112 / SIZE < 4.5
    box = tuple(v * 112 / SIZE for v in sample.boxes[0])
    crop, _ = view.crop(tools.parse_call(call(*box)))
    assert (x2 - x1) * tools.fit(crop.size, 134 * 134)[0] / crop.width > 25


@pytest.mark.parametrize("kind", ["path", "bytes", "picture", "callable"])
def test_pictures_open_whatever_they_are(tmp_path, kind):
    picture = Image.new("P", (40, 20), 3)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    image = {
        "path": str(tmp_path / "a.png"),
        "bytes": buffer.getvalue(),
        "picture": picture,
        "callable": picture.copy,
    }[kind]
    opened = Sample("x", image, "?", "a").open()
    assert (opened.mode, opened.size) == ("RGB", (40, 20))


def test_pictures_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=exif)
    assert Sample("x", buffer.getvalue(), "?", "a").open().size == (20, 40)


@pytest.mark.parametrize("image", [b"not a picture", "no/such/file.png"])
def test_a_picture_that_cannot_be_read_names_its_sample(image):
    with pytest.raises(ValueError, match="sample row-7"):
        Sample("row-7", image, "?", "a").open()


def test_unknown_names_and_splits_are_refused():
    with pytest.raises(ValueError, match="toy-mixture"):
        load("nothing")
    with pytest.raises(ValueError, match="splits"):
        load("toy", split="validation")
