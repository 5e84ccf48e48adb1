"""`subnet-search init`: what it copies, and that nothing of the user's is overwritten."""

from pathlib import Path

import pytest

from subnet_search.cli import main

ROOT = Path(__file__).parents[2]
COUNT = sum(
    len(list((ROOT / name).glob(files))) for name, files in {"configs": "*", "studies": "*", "examples": "*.[pi]*"}.items()
)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def init(capsys, *words, code=0):
    with pytest.raises(SystemExit) as ended:
        main(["init", *words])
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    return err if code else out


def files():
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def test_everything_is_copied_as_it_is(capsys):
    said = init(capsys)
    assert said == (
        f"{COUNT} files copied into configs/, studies/, examples/\n\nNext:\n"
        "  subnet-search extract configs/gumbel_digits.yaml\n"
        "  subnet-search study run studies/quickstart.yaml\n"
    )
    assert len(files()) == COUNT
    assert all((ROOT / name).read_bytes() == content for name, content in files().items())
    assert {"configs/gumbel_digits.yaml", "studies/quickstart.yaml", "examples/largest.py"} <= files().keys()


def test_another_folder_is_made_and_named(capsys):
    said = init(capsys, "my project/new")
    assert f"{COUNT} files copied into my project/new/configs/, " in said
    assert "\n  cd 'my project/new'\n  subnet-search extract " in said
    assert len(files()) == COUNT


def test_what_exists_stays(capsys):
    Path("configs").mkdir()
    Path("configs/gumbel_digits.yaml").write_text("mine")
    Path("configs/random_digits.yaml").symlink_to("nowhere")
    said = init(capsys)
    assert said.startswith(
        "configs/gumbel_digits.yaml exists and was not overwritten\n"
        "configs/random_digits.yaml exists and was not overwritten\n"
        f"{COUNT - 2} files copied into "
    )
    assert Path("configs/gumbel_digits.yaml").read_text() == "mine"
    assert not Path("nowhere").exists()
    before = files()
    assert init(capsys).count(" exists and was not overwritten\n") == COUNT
    assert files() == before


@pytest.mark.parametrize(("words", "taken"), [(["there"], "there"), ([], "studies"), (["there"], "there/examples")])
def test_a_file_in_the_way_is_one_line_before_anything_is_copied(capsys, words, taken):
    Path(taken).parent.mkdir(exist_ok=True)
    Path(taken).write_text("mine")
    assert init(capsys, *words, code=2) == f"error: {taken} is a file: choose a folder\n"
    assert files() == {taken: b"mine"}


def test_a_folder_that_cannot_be_written_is_one_line(capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    assert init(capsys, code=1) == "error: cannot write configs/compare_fashion_mnist.yaml: No space left on device\n"


def test_it_is_listed(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "\n  init " in capsys.readouterr().out
