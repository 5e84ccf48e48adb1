"""What a notebook and a terminal show of objects that hold tensors: one line, or a small table."""

import torch
from torch import nn

import subnet_search as ss
from subnet_search.extractors.author import Change
from subnet_search.tasks.predictions import Prediction, SegmentationPrediction


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 100

    def __getitem__(self, index):
        return torch.full((3,), float(index)), index % 2


def extracted(**options):
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    recipe = ss.Recipe(epochs=1, device="cpu", threads=1)
    return ss.extract(net, (torch.randn(120, 8), torch.arange(120) % 2), "magnitude", density=0.25, recipe=recipe, **options)


def test_a_subnetwork_is_one_line_and_a_table():
    subnet = extracted()
    accuracy = f"{100 * subnet.metrics['val_accuracy']:.2f} %"
    text = repr(subnet)
    assert text == (
        "Subnetwork(magnitude on a network from Python, data from Python: density 0.2500 (80 of 320 weights), "
        f"validation accuracy {accuracy}, size 496 B)"  # 40 of masks, 4 * 80 of weights, 4 * 34 of biases
    )
    table = subnet._repr_html_()
    assert table.count("<tr>") == 5
    assert accuracy in table
    assert subnet.sha256[:16] in table


def test_names_are_escaped_in_the_table():
    subnet = extracted()
    odd = ss.Subnetwork(
        subnet.masks,
        subnet.weights,
        subnet.scales,
        subnet.state,
        subnet.origin.model_copy(update={"data": {"name": "<script>"}}),
        {},
    )
    assert "<script>" not in odd._repr_html_()
    assert "&lt;script&gt;" in odd._repr_html_()
    assert repr(odd).startswith("Subnetwork(magnitude on a network from Python, <script>: density 0.2500")


def test_data_is_one_line():
    assert (
        repr(ss.load_data("digits"))
        == "Data(digits: 1,294 training and 144 validation items of shape (1, 8, 8), 10 classes, in memory)"
    )
    assert (
        repr(ss.load_data(Numbers())) == "Data(given data: 90 training and 10 validation items, 2 classes, read item by item)"
    )


def test_tensors_are_shown_by_type_and_shape():
    split = ss.load_data("digits").val
    assert repr(split) == "Split(inputs=uint8 (144, 1, 8, 8), labels=int64 (144,), weights=None)"
    found = Prediction(torch.zeros(3, dtype=torch.long), torch.zeros(3, 2), None)
    assert repr(found) == "Prediction(classes=int64 (3,), probabilities=float32 (3, 2), names=None)"
    large = SegmentationPrediction(torch.zeros(2, 4, 4), torch.zeros(2, 3, 4, 4), ("a", "b", "c"))
    assert repr(large).endswith("names=('a', 'b', 'c'))")
    change = Change(weights={"0.weight": torch.zeros(2, 2)})
    assert "weights={0.weight: float32 (2, 2)}" in repr(change)
    many = Change(weights={str(index): torch.zeros(2, 2) for index in range(9)})
    assert "weights=dict," in repr(many)
    assert repr(ss.load_data((torch.randn(100, 3), torch.arange(100) % 2)).train).count("\n") == 0
