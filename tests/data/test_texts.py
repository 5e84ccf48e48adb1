"""Text: the windows by hand, characters and bytes, and what goes wrong."""

import pytest
import torch
from torch import nn

import subnet_search as ss
from subnet_search.core.errors import UserError
from subnet_search.data import Batches, Labels, describe, load

TOKENS = Labels(classes=False)


def text(folder, content, name="a.txt", **settings):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return load({"name": f"text:{folder / name}", **settings}, TOKENS)


def test_windows_by_hand(tmp_path):
    # Of 20 characters, 16 are for training and 4 for validation. The vocabulary is a, b, c, d.
    data = text(tmp_path, "abcd" * 5, context=3, val_fraction=0.2)
    assert (len(data.train), len(data.val), data.test()) == (5, 1, None)
    assert data.class_names == ("a", "b", "c", "d")
    assert next(data.val.batches("val")).tolist() == [[0, 1, 2, 3]]
    [windows] = data.train.batches(0)
    assert windows.shape == (5, 4)
    assert windows.dtype == torch.int64
    # Every window is a run of the text that starts 0, 1 or 2 characters after its fixed place, and at most at 12.
    for index, window in enumerate(windows.tolist()):
        assert window in [[(start + i) % 4 for i in range(4)] for start in range(3 * index, min(3 * index + 2, 12) + 1)]


def test_all_positions_are_seen_over_the_epochs_and_nothing_of_the_validation_text(tmp_path):
    content = bytes(range(200))
    data = text(tmp_path, content, context=10, tokens="bytes")
    batches = Batches(data.train, None, None, len(data.train), 0)
    seen = {epoch: batches.batch(epoch) for epoch in range(60)}
    starts = {start for batch in seen.values() for start in batch[:, 0].tolist()}
    assert starts == set(range(170))  # of 180 bytes of training, a window has 11
    assert max(int(batch.max()) for batch in seen.values()) == 179
    assert not seen[0].sort(0).values.equal(seen[1].sort(0).values)
    assert next(data.val.batches("val")).tolist() == [list(range(180, 191))]
    assert (data.class_names, data.input_range) == (None, ("int64", 0, 255))


def test_the_same_text_gives_the_same_batches_and_another_another_fingerprint(tmp_path):
    one, same = (text(tmp_path, "some words " * 30, context=8) for _ in range(2))
    other = text(tmp_path, "some words " * 29 + "some wordz ", "b.txt", context=8)
    draw = [Batches(data.train, None, None, 4, 7).batch(9) for data in (one, same)]
    assert draw[0].equal(draw[1])
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_text_in_parts(tmp_path):
    for part, content in (("train", "abcabcab"), ("val", "cbac"), ("test", "aaaa")):
        text(tmp_path, content * 20, f"{part}.txt", context=3)
    data = load({"name": f"text:{tmp_path}", "context": 3}, TOKENS)
    assert [len(part) for part in (data.train, data.val, data.test())] == [53, 26, 26]
    assert data.val.first(1).tolist() == [[2, 1, 0, 2]]
    (tmp_path / "test.txt").write_text("abcx")
    with pytest.raises(UserError, match=r"test.txt: the character 'x' at 3 is not in the vocabulary of the run"):
        load({"name": f"text:{tmp_path}", "context": 3}, TOKENS).test()


def test_another_text_has_the_vocabulary_of_the_run(tmp_path):
    data = text(tmp_path, "abcd" * 30, context=3)
    (tmp_path / "b.txt").write_text("dddd" * 4)
    spec = data.spec.model_copy(update={"name": f"text:{tmp_path}/b.txt"})
    assert load(spec, TOKENS, all_is_test=True).test().first(1).tolist() == [[3, 3, 3, 3]]


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("", {}, "a.txt is empty"),
        ("abc", {}, "the training text has 3 tokens; with data.context 64 it needs 65"),
        ("abcd" * 20, {"context": 30}, "the validation text has 8 tokens; with data.context 30 it needs 31"),
        (b"\xff\xfe\xff" * 50, {}, "a.txt is not a readable text: not UTF-8 text"),
    ],
)
def test_mistakes(tmp_path, content, settings, message):
    with pytest.raises(UserError, match=message):
        text(tmp_path, content, **settings)


def test_a_task_with_class_labels_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("abcd" * 300)
    with pytest.raises(UserError, match="has no labels: set task: language_modeling"):
        load(f"text:{tmp_path}/a.txt")
    with pytest.raises(UserError, match=r"no such data file: .*none.txt"):
        load(f"text:{tmp_path}/none.txt", TOKENS)
    with pytest.raises(UserError, match="context: only for text:FILE, and the data is digits"):
        load({"name": "digits", "context": 3})
    assert describe(f"text:{tmp_path}/a.txt")["shape"] == [65]


def test_a_network_learns_a_text_and_is_evaluated_on_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("abcd" * 200 + "e" * 9)  # e is in the validation text only
    net = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5))
    config = ss.RunConfig(
        data={"name": "text:a.txt", "context": 8},
        task="language_modeling",
        extractor={"name": "magnitude", "density": 0.5},
        recipe={"epochs": 20, "batch_size": 8, "lr": 1.0, "threads": 1, "device": "cpu"},
    )
    subnet = ss.run(config, tmp_path / "run", module=net)
    assert subnet.origin.class_names == tuple("abcde")
    (tmp_path / "b.txt").write_text("bcda" * 40)
    assert ss.evaluate(subnet, "test", network=net, data="text:b.txt")["perplexity"] < 1.5
