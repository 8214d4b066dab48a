"""Samples and the toy world."""

import io
import json
from collections import Counter
from functools import partial

import datasets
import numpy as np
import pytest
from conftest import call
from PIL import Image

import data
import tools
from config import TrainConfig
from data import Sample, load
from toy.world import COLOURS, LETTERS, MIXTURE, SIZE, random_scene, render
from training import run as training_run
from training.settle import read_config


def test_the_toy_is_drawn_from_its_seed():
    first, again, other = (
        load("toy", limit=8),
        load("toy", limit=8),
        load("toy", limit=8, seed=1),
    )
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
        image = sample.open()
        assert image.size == (SIZE, SIZE)
        for box in sample.boxes:
            corner = image.getpixel((int(box[0]) + 3, int(box[1]) + 3))
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


def test_variants_of_the_toy():
    """Only what was asked for changes; a variant's images are its own."""
    kinds = Counter(s.meta["kind"] for s in load("toy:kinds=read+compare", limit=60))
    assert set(kinds) == {"read", "compare"}
    for sample in load("toy:kinds=read,tiles=5-6,letters=120-130", limit=20):
        (x1, _, x2, _) = sample.meta["glyphs"][0]
        (left, _, right, _) = sample.boxes[0]
        assert 120 <= x2 - x1 <= 130 < right - left < SIZE / 4
        assert len(sample.meta["others"]) in (4, 5)
        assert sample.source == "toy" and sample.open().size == (SIZE, SIZE)
    assert load("toy-mixture:kinds=legible", limit=3)[0].meta["kind"] == "legible"
    for sample in load("toy-mixture", limit=200):
        boxes = [box for box, _ in sample.meta["others"]]
        assert not set(boxes) & set(sample.boxes) and all(text for _, text in sample.meta["others"])


@pytest.mark.parametrize(
    "name, said",
    [
        ("toy:kinds=write", "no such kind of question: write"),
        ("toy:kinds=legible", "no such kind"),  # of the mixture alone
        ("toy:tiles=1-9", "no range within 2 and 6"),
        ("toy:tiles=many", "a range looks like 28-36"),
        ("toy:letters=0-999999999", "no range within"),
        ("toy:size=4", "not 'size=4'"),
    ],
)
def test_a_variant_that_cannot_be_is_refused(name, said):
    with pytest.raises(ValueError, match=said):
        load(name, limit=3)


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
    image = Image.new("P", (40, 20), 3)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    image = {
        "path": str(tmp_path / "a.png"),
        "bytes": buffer.getvalue(),
        "picture": image,
        "callable": image.copy,
    }[kind]
    opened = Sample("x", image, "?", "a").open()
    assert (opened.mode, opened.size) == ("RGB", (40, 20))


def test_pictures_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=exif)
    assert Sample("x", buffer.getvalue(), "?", "a").open().size == (20, 40)


@pytest.mark.parametrize("image", [b"not an image", "no/such/file.png"])
def test_a_picture_that_cannot_be_read_names_its_sample(image):
    with pytest.raises(ValueError, match="sample row-7"):
        Sample("row-7", image, "?", "a").open()


def test_unknown_names_and_splits_are_refused():
    with pytest.raises(ValueError, match="toy-mixture"):
        load("nothing")
    with pytest.raises(ValueError, match="splits"):
        load("toy", split="validation")


# --------------------------------------------------------------------------------------------------
# The public layouts, on small files written here.


def encoded(size=(64, 48), kind="PNG", **settings) -> bytes:
    return saved(Image.new("RGB", size, (200, 30, 30)), kind, **settings)


def saved(image, kind, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def deepeyes_rows(n: int, source: str = "vstar") -> dict:
    """verl's columns, as in ChenShawn/DeepEyes-Datasets-47k."""
    if source == "thinklite_eureka":
        user = "<image>You FIRST think, then answer in \\boxed{}.\nQuestion:\nHow much is %d + 1?"
    else:
        user = "<image>\nWhat colour is cup %d?\nThink first, call **image_zoom_in_tool** if needed, ..."
    return {
        "prompt": [
            [
                {"role": "system", "content": "You are ..."},
                {"role": "user", "content": user % i},
            ]
            for i in range(n)
        ],
        "images": [[{"bytes": encoded((60 + i, 40)), "path": None}] for i in range(n)],
        "reward_model": [{"ground_truth": f"answer {i}", "style": "model"} for i in range(n)],
        "extra_info": [{"question": user % i, "answer": f"answer {i}", "index": i} for i in range(n)],
        "data_source": [source] * n,
        "ability": ["vqa"] * n,
        "env_name": ["visual_toolbox_v2"] * n,
    }


def write_parquet(file, columns: dict) -> None:
    datasets.Dataset.from_dict(columns).to_parquet(str(file))


def test_deepeyes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "data_0.1.2_visual_toolbox_v2.parquet", deepeyes_rows(6))
    write_parquet(tmp_path / "data_thinklite.parquet", deepeyes_rows(4, "thinklite_eureka"))
    samples = load("deepeyes", root=str(tmp_path))
    assert Counter(s.source for s in samples) == {"vstar": 6, "thinklite_eureka": 4}
    visual, maths = samples[2], samples[8]
    assert (visual.question, visual.answer, visual.tool) == (
        "What colour is cup 2?",
        "answer 2",
        True,
    )
    assert (maths.question, maths.tool) == ("How much is 2 + 1?", False)
    assert visual.open().size == (62, 40) and visual.open().getpixel((3, 3)) == (200, 30, 30)
    picked = load("deepeyes", root=str(tmp_path), limit=3, seed=1)
    assert [s.id for s in picked] == [s.id for s in load("deepeyes", root=str(tmp_path), limit=3, seed=1)]


def test_a_commit_of_the_hub_is_taken_and_noted(tmp_path, monkeypatch):
    """Two commits in a cache as the Hub's library lays it out, without a connection."""
    place = tmp_path / "datasets--ChenShawn--DeepEyes-Datasets-47k"
    commits = {"1" * 40: 5, "2" * 40: 7}
    for commit, count in commits.items():
        folder = place / "snapshots" / commit
        folder.mkdir(parents=True)
        (folder / "README.md").write_text("x")
        write_parquet(folder / "data_0.1.2_visual_toolbox_v2.parquet", deepeyes_rows(count))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("2" * 40)
    fetch = partial(data.snapshot_download, cache_dir=tmp_path, local_files_only=True)
    monkeypatch.setattr(data, "snapshot_download", fetch)
    assert len(load("deepeyes", revision="1" * 40)) == 5
    assert data.USED == {data.DEEPEYES: "1" * 40}
    assert len(load("deepeyes")) == 7
    out = tmp_path / "run"
    flags = {"data": "deepeyes", "prompts": 2, "micro_batch": 16, "eval_size": 0, "threads": 1}
    begun = []
    monkeypatch.setattr(training_run, "train", lambda config, *more: begun.append(config))
    training_run.run(TrainConfig(**flags, out=str(out)), build_trainer=None)
    # In args.json, so that a resume takes the same
    stored = json.loads((out / "args.json").read_text())
    assert begun[0].revision == stored["revision"] == "2" * 40
    data.USED.clear()
    # The same command again: what the name stood for is the run's
    again = ["--data", "deepeyes", "--out", str(out), "--resume", "--revision"]
    assert read_config([*again, "main"]).revision == "2" * 40
    with pytest.raises(SystemExit):
        read_config([*again, "1" * 40])


def test_train_and_test_rows_are_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded())
    rows = [{"image": "a.png", "question": f"{i}?", "answer": "A"} for i in range(300)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, test = ({s.id for s in load(str(tmp_path), split=part)} for part in ("train", "test"))
    assert not train & test and len(train | test) == 300 and 5 <= len(test) <= 30


def test_rows_may_say_their_split_themselves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded())
    said = ["test"] * 7 + ["train"] * 20 + [None] * 13 + ["dev"]
    rows = [{"image": "a.png", "question": f"{i}?", "answer": "A", "split": s} for i, s in enumerate(said)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [sample.question for sample in load(str(tmp_path), split="test")] == [f"{i}?" for i in range(7)]
    assert len(load(str(tmp_path), split="train")) == 33 and len(load(str(tmp_path))) == 40
    assert "split is 'dev'" in (tmp_path / "runs" / f"bad-rows-{tmp_path.name}.jsonl").read_text()


def test_seal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = {
        "conversations": [
            {
                "from": "human",
                "value": "<image>\nAdditional visual information: cup <object>.\nWhat is it?",
            },
            {"from": "gpt", "value": "It is a red cup."},
        ],
        "image": "coco2017/train2017/1.jpg",
        "target_instances": [{"name": "cup", "bbox": [10, 20, 30, 40]}],
    }
    (tmp_path / "coco2017/train2017").mkdir(parents=True)
    (tmp_path / "coco2017/train2017/1.jpg").write_bytes(encoded((640, 480), kind="JPEG"))
    lost = record | {"image": "coco2017/train2017/2.jpg"}
    for name in ("GQA_data", "llava_focus_data", "spatial_relation_data", "vaw_attribute_data"):
        (tmp_path / f"{name}.json").write_text(json.dumps([record, lost, {"image": "x"}]))
    samples = load("seal", root=str(tmp_path))
    assert len(samples) == 4 and samples[0].boxes == ((10, 20, 40, 60),)
    assert (samples[0].question, samples[0].answer) == ("What is it?", "It is a red cup.")
    bad = [json.loads(line) for line in (tmp_path / "runs/bad-rows-seal.jsonl").read_text().splitlines()]
    assert len(bad) == 8 and bad[0]["row"] == "GQA_data.json, row 1" and "no image" in bad[0]["reason"]
    (tmp_path / "GQA_data.json").unlink()
    with pytest.raises(ValueError, match="lacks GQA_data.json"):
        load("seal", root=str(tmp_path))


def test_a_folder_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded())
    good = {
        "image": "a.png",
        "question": "Which?",
        "answer": "a dog",
        "options": ["a cat", "a dog"],
    }
    rows = [
        good | {"boxes": [[1, 2, 30, 40]]},
        {"image": "a.png", "question": "Which?"},
        good | {"image": "b.png"},
        good | {"boxes": [[5, 5, 1, 1]]},
        good | {"question": "What does <|image_pad|> show?"},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows) + "{broken\n"
    (tmp_path / "mine.jsonl").write_text(text)
    samples = load(str(tmp_path))
    assert len(samples) == 1 and samples[0].boxes == ((1.0, 2.0, 30.0, 40.0),)
    assert samples[0].options == ("a cat", "a dog") and samples[0].open().size == (64, 48)
    bad = (tmp_path / f"runs/bad-rows-{tmp_path.name}.jsonl").read_text()
    assert len(bad.splitlines()) == 5
    for reason in (
        "lacks answer",
        "no image",
        "not a box",
        "special tokens",
        "no JSON",
    ):
        assert reason in bad


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: (d / "x.parquet").write_bytes(b"not parquet"), "x.parquet can't be read"),
        (
            lambda d: write_parquet(d / "x.parquet", {"prompt": ["a"]}),
            "lacks the columns images",
        ),
        (lambda d: None, "holds no parquet"),
    ],
)
def test_what_cannot_be_read_at_all_is_one_clear_line(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        load("deepeyes", root=str(tmp_path))


def test_missing_places(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no such folder"):
        load("seal", root=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="neither .jsonl files nor"):
        load(str(tmp_path))
    with pytest.raises(ValueError, match="unknown data set"):
        load("toyz")
    monkeypatch.setattr(data, "snapshot_download", lambda *a, **k: (_ for _ in ()).throw(OSError("no net")))
    with pytest.raises(ValueError, match="hf download --repo-type dataset ChenShawn"):
        load("deepeyes")


def test_mix_refuses_what_it_cannot_do():
    toys = load("toy", limit=4)
    for ratio in ("toy", "toy:x", "vstar:1"):
        with pytest.raises(ValueError):
            data.mix(toys, ratio)


def odd_image(name):
    """Encoded bytes, and the size and a pixel at (5, 5) that open() must give."""
    red, blue = (Image.new("RGB", (64, 48), colour) for colour in ((200, 30, 30), (0, 0, 255)))
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter
    if name == "small":
        return saved(red.resize((20, 9)), "PNG"), (20, 9), (200, 30, 30)
    if name == "cmyk":
        return saved(red.convert("CMYK"), "JPEG", quality=95), (64, 48), (200, 30, 30)
    if name == "palette":
        return saved(red.quantize(8), "PNG"), (64, 48), (200, 30, 30)
    if name == "alpha":
        return saved(red.convert("RGBA"), "PNG"), (64, 48), (200, 30, 30)
    if name == "sixteen":
        return (
            saved(Image.fromarray(np.full((48, 64), 100 * 256, np.uint16)), "PNG"),
            (64, 48),
            (100,) * 3,
        )
    if name == "animated":
        frames = {"save_all": True, "append_images": [blue], "lossless": True}
        return saved(red, "WEBP", **frames), (64, 48), (200, 30, 30)
    if name == "rotated":
        return saved(red, "JPEG", exif=exif, quality=95), (48, 64), (200, 30, 30)
    return saved(Image.new("L", (20000, 10000), 90), "PNG"), (20000, 10000), (90, 90, 90)


@pytest.mark.parametrize(
    "name", ["small", "cmyk", "palette", "alpha", "sixteen", "animated", "rotated", "huge"]
)
def test_odd_pictures_open(name):
    content, size, pixel = odd_image(name)
    image = Sample("x", content, "?", "A").open()
    assert image.mode == "RGB" and image.size == size
    assert max(abs(a - b) for a, b in zip(image.getpixel((5, 5)), pixel)) <= 6
    shown = tools.fit(size, 112 * 112)
    assert tools.View(image, shown).look().size == shown


def test_a_truncated_picture_names_its_sample():
    content = odd_image("rotated")[0]
    with pytest.raises(ValueError, match="sample x: its image can't be read"):
        Sample("x", content[: len(content) // 2], "?", "A").open()


def test_unreadable_pictures_are_named_and_left_out(capsys):
    good, bad = Sample("good", encoded(), "?", "A"), Sample("bad", b"no image", "?", "A")
    drawn = load("toy", limit=1)[0]
    assert data.readable([good, bad, drawn]) == [good, drawn]
    assert "left out: sample bad" in capsys.readouterr().out
