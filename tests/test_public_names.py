"""The public names: a change of one is a change that users must be told of (CHANGELOG.md)."""

import subnet_search

NAMES = """
Allocation
Change
ChannelDensity
compare
Data
Density
DropFraction
evaluate
Every
export
extract
Extractor
Grow
Images
Int
Invert
load_data
load_deployed
load_study
Masks
Normalise
OneOf
Paper
Paradigm
PhaseEnd
plasticity
plot_comparison
predict
prune_potential
Published
Real
Recipe
register
RelevanceLearner
report
report_to
retrain_trial
Rounds
run
run_study
RunConfig
RunError
sanity
Scope
Strength
StudySpec
Subnetwork
suggest
Task
to_dataframe
Until
UserError
"""


def test_the_names_are_those_that_users_know():
    assert sorted(subnet_search.__all__, key=str.lower) == NAMES.split()


def test_each_is_there():
    assert all(getattr(subnet_search, name) is not None for name in NAMES.split())
    assert subnet_search.__version__.count(".") == 2
