"""Settings made in Python: a mistake is one line, as in a file."""

import pytest

import subnet_search as ss
from subnet_search.extractors import get_extractor


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: ss.Recipe(epoch=3), r"^unknown key 'epoch': did you mean 'epochs'\? valid: allow_collapse, augment"),
        (lambda: ss.Recipe(epochs=-1), r"^epochs: input should be greater than or equal to 0, got -1$"),
        (lambda: ss.Recipe(milestones=(0.5, 0.2)), r"^milestones: milestones must be increasing"),
        (lambda: ss.StudySpec(nam="x"), r"name: field required"),
        (lambda: ss.StudySpec(name="x", run={"recipe": {"lr": "a"}}), r"^run\.recipe\.lr: input should be a valid number"),
        (lambda: ss.RunConfig(extractor={"name": "gumbel", "density": 2}), r"^extractor\.density: .*2"),
        (lambda: get_extractor("gumbel")(densty=0.2), r"^unknown key 'densty': did you mean 'density'\?"),
    ],
)
def test_a_mistake_is_one_line(made, says):
    with pytest.raises(ss.UserError, match=says) as caught:
        made()
    assert "\n" not in str(caught.value)


def test_settings_inside_settings_keep_their_path():
    with pytest.raises(ss.UserError, match=r"^distill\.weight: input should be less than or equal to 1, got 3$"):
        ss.Recipe(distill={"weight": 3})
