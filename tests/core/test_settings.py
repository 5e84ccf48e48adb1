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
        (lambda: ss.RunConfig(recipe={"epoch": 3}), r"^unknown key 'recipe\.epoch': did you mean 'epochs'\?"),
        (
            lambda: ss.RunConfig(recipe={"distill": {"techer": 1}}),
            r"^unknown key 'recipe\.distill\.techer': did you mean 'teacher'",
        ),
        (
            lambda: ss.RunConfig(extractor={"name": "rigl", "densty": 0.1}),
            r"^unknown key 'extractor\.densty': did you mean 'dens",
        ),
        (
            lambda: ss.RunConfig(task={"name": "regression", "eror": "mse"}),
            r"^unknown key 'task\.eror': did you mean 'error'\?",
        ),
        (lambda: ss.RunConfig(target={"flop": 0.5}), r"^unknown key 'target\.flop': did you mean 'flops'\?"),
        (
            lambda: ss.StudySpec(name="x", run={"recipe": {"epoch": 3}}),
            r"^unknown key 'run\.recipe\.epoch': did you mean 'epochs'",
        ),
        (
            lambda: ss.StudySpec(name="x", callbacks={"on_epch": "a:b"}),
            r"^unknown key 'callbacks\.on_epch': did you mean 'on_epoch'",
        ),
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
