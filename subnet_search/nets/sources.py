"""Networks by name: built-in, of torchvision, timm and transformers, or made by a function of the user's."""

import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from subnet_search.core.errors import UserError, reason, shown, unknown
from subnet_search.core.imports import import_function, required
from subnet_search.nets import deep, small

Factory = Callable[..., nn.Module]
Call = tuple[Callable[..., Any], dict[str, Any]]  # a factory, and its keyword arguments
BUILT_IN: dict[str, Factory] = {
    factory.__name__: factory
    for factory in (
        small.lenet_300_100,
        small.lenet5,
        small.small_conv,
        small.conv2,
        small.conv4,
        small.conv6,
        deep.resnet20,
        deep.resnet32,
        deep.resnet56,
        deep.resnet18,
        deep.vgg19,
    )
}
FORMS = ("torchvision:NAME", "timm:NAME", "hf:TYPE", "hf:./FOLDER", "package.module:factory")  # of names that are not built in
LIBRARIES = ("torchvision", "timm", "hf")
PRETRAINED = ("weights", "pretrained")  # beginnings of options that download weights
TASK_CLASSES = {  # the transformers class of a task, without the head's name
    "classification": ("AutoModelForSequenceClassification", "AutoModelForImageClassification"),
    "multi_label": ("AutoModelForSequenceClassification", "AutoModelForImageClassification"),
    "regression": ("AutoModelForSequenceClassification", "AutoModelForImageClassification"),
    "segmentation": ("AutoModelForSemanticSegmentation",),
    "language_modeling": ("AutoModelForCausalLM",),
}
NOT_OPTIONS = (
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "model_type",
    "num_labels",
    "torch_dtype",
    "transformers_version",
)
"""Keys in the config.json of a folder that are not passed on: the network decides them, or the data."""


SOUNDS_LIKE_OUTPUTS = re.compile(r"class|cls|label|categor|target|(^|_)out")
"""In the name of an argument that is probably the number of outputs."""


def network_names() -> list[str]:
    """The names of the networks that ship with the package."""
    return list(BUILT_IN)


def library_of(name: str) -> str | None:
    """The library that a network's name begins with: torchvision, timm or hf."""
    library, colon, _ = name.partition(":")
    return library if colon and library in LIBRARIES else None


def is_ours(name: str) -> bool:
    """Whether a network of this name can be built without importing a module of the user's, and without their files."""
    return name in BUILT_IN or (library_of(name) is not None and not is_folder(name))


def is_own(name: str) -> bool:
    """Whether the name is of a function of the user's, `package.module:factory`."""
    return ":" in name and library_of(name) is None


def is_folder(name: str) -> bool:
    """Whether the name is of a folder of a transformers model, such as `hf:./my-bert`."""
    return name.startswith("hf:") and "/" in name


def construct(name: str, options: Mapping[str, Any], shape: tuple[int, ...], classes: int | None) -> nn.Module:
    """Build a network by name. shape: of one input, empty where inputs are not one tensor; classes: the number of outputs.

    Raises UserError when there is no such network, and when it does not accept its options.
    """
    short = name.partition(":")[2]
    match library_of(name):
        case "torchvision":
            factory, given = _torchvision(short, options, classes)
        case "timm":
            factory, given = _timm(short, options, shape, classes)
        case "hf":
            factory, given = _transformers(short, options, classes)
        case _:
            factory, given = (_own if short else _built_in)(name, options, shape, classes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net: Any = factory(**given)
    except UserError:
        raise
    except Exception as error:  # anything that a factory raises
        raise UserError(f"{name} does not accept {shown(given)}: {reason(error)}") from error
    if not isinstance(net, nn.Module):
        raise UserError(f"{name} returned {type(net).__name__}, not a torch.nn.Module")
    return net


def _built_in(name: str, options: Mapping[str, Any], shape: tuple[int, ...], classes: int | None) -> Call:
    if classes is None:
        raise UserError(f"{name} needs the number of outputs, which the task does not give: use a network of your own")
    if len(shape) != 3:
        raise UserError(f"{name} needs images (channels, height, width); one input of this data has shape {tuple(shape)}")
    if min(shape[1:]) < 8:
        raise UserError(f"{name} needs images of at least 8x8 pixels, got {shape[1]}x{shape[2]}")
    _check_keys(name, options, list(inspect.signature(BUILT_IN[name]).parameters)[2:])
    return BUILT_IN[name], {"shape": (shape[0], shape[1], shape[2]), "classes": classes, **options}


def _check_keys(name: str, options: Mapping[str, Any], valid: list[str]) -> None:
    for key in options:
        if key not in valid:
            raise unknown(f"option of {name}", key, valid)


def _own(name: str, options: Mapping[str, Any], shape: tuple[int, ...], classes: int | None) -> Call:
    """A function of the user's, to be called with `options`, and with `num_classes` and `shape` if its signature has them."""
    factory = import_function(name, "network")
    parameters = _parameters(factory)
    more = {"num_classes": classes, "shape": tuple(shape) or None}
    any_key = _takes_any_key(parameters)
    known = {
        key for key, value in more.items() if value is not None and (key in parameters or (any_key and key == "num_classes"))
    }
    given = {**{key: more[key] for key in more if key in known}, **options}
    needed = [
        key
        for key, one in parameters.items()
        if one.default is one.empty and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) and key not in given
    ]
    if not any_key:
        _check_keys(name, options, list(parameters))
    if needed:
        absent = [key for key in needed if key in more]
        why = (
            f", and this data has no {'number of classes' if absent[0] == 'num_classes' else 'single shape'}" if absent else ""
        )
        value = f"={classes}" if classes and SOUNDS_LIKE_OUTPUTS.search(needed[0]) else ""
        why = why or "; the number of classes is passed only to an argument called num_classes"
        raise UserError(f"{name} needs the argument {needed[0]!r}: set network.options.{needed[0]}{value}{why}")
    return factory, given


def outputs_hint(name: str, outputs: int | None) -> str:
    """How a function of the user's gets the number of outputs, to end a message; empty for other networks."""
    if not outputs or not is_own(name):
        return ""
    parameters = _parameters(import_function(name, "network"))
    if "num_classes" in parameters or _takes_any_key(parameters):
        return "; the function gets this number as num_classes, unless network.options sets another"
    similar = next(filter(SOUNDS_LIKE_OUTPUTS.search, parameters), None)
    if similar is None:
        return "; give the function an argument called num_classes, to which this number is passed"
    return f"; the number is passed only to an argument called num_classes: set network.options.{similar}={outputs}"


def _parameters(factory: Factory) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):  # of some functions that are not written in Python
        return {}


def _takes_any_key(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())


def _torchvision(name: str, options: Mapping[str, Any], classes: int | None) -> Call:
    import torchvision.models as models

    valid = models.list_models(module=models)
    if name not in valid:
        raise unknown("torchvision network", name, valid)
    given = {**({} if classes is None else {"num_classes": classes}), **options}
    if name in ("googlenet", "inception_v3"):  # with auxiliary heads they return a tuple in training
        given = {"aux_logits": False, "init_weights": False, **given}
    return partial(models.get_model, name), given


def _timm(name: str, options: Mapping[str, Any], shape: tuple[int, ...], classes: int | None) -> Call:
    timm: Any = required("timm", "timm", f"the network timm:{name}")
    if not timm.is_model(name):
        raise unknown("timm network", name, timm.list_models())
    given = {} if classes is None else {"num_classes": classes}
    given |= {"in_chans": shape[0]} if len(shape) == 3 and shape[0] != 3 else {}
    return partial(timm.create_model, name), {**given, **options}


def _transformers(name: str, options: Mapping[str, Any], classes: int | None) -> Call:
    """A transformers model of a model type, such as `bert`, with random weights. `options` are those of its configuration.

    options["class"]: a class of transformers, such as AutoModelForCausalLM or BertForTokenClassification.
    """
    transformers: Any = required("transformers", "hf", f"the network hf:{name}")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if name not in CONFIG_MAPPING:
        raise unknown("transformers model type", name, [*CONFIG_MAPPING, "./FOLDER"])
    settings = {key: value for key, value in options.items() if key != "class"}
    kind = CONFIG_MAPPING[name]
    _check_keys(f"hf:{name}", settings, [*kind().to_dict(), "class", *kind.attribute_map])
    given = {**({} if classes is None else {"num_labels": classes}), **settings}
    wanted = [options["class"]] if "class" in options else TASK_CLASSES["classification"]
    if missing := [one for one in wanted if not hasattr(transformers, str(one))]:
        raise unknown("class of transformers", missing[0], [key for key in dir(transformers) if "For" in key])
    classes_of = [getattr(transformers, one) for one in wanted]
    found: Any = next((one for one in classes_of if kind in getattr(one, "_model_mapping", (kind,))), None)
    if found is None:
        raise UserError(f"transformers has no {wanted[0]} for {name}: set network.options.class")
    make: Any = found.from_config if hasattr(found, "_model_mapping") else found
    return lambda **settings: make(kind(**settings)), given


def of_folder(name: str) -> tuple[str, dict[str, Any], str | None]:
    """The model type, options and file of weights (None: there is none) of a folder of a transformers model, `hf:./FOLDER`.

    Raises UserError when it has no configuration that can be read. Nothing is downloaded and no code of the folder is run.
    """
    transformers: Any = required("transformers", "hf", f"the network {name}")
    folder = Path(name.removeprefix("hf:")).expanduser()
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} has no config.json: hf:{folder} is a folder that save_pretrained of transformers has written"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"cannot read {folder / 'config.json'}: {reason(error)}") from error
    options = {key: value for key, value in config.to_diff_dict().items() if key not in NOT_OPTIONS}
    files = [folder / file for file in ("model.safetensors", "pytorch_model.bin") if (folder / file).is_file()]
    if not files and any(folder.glob("*.index.json")):
        raise UserError(f"the weights of {folder} are in several files: save them as one with max_shard_size")
    return f"hf:{config.model_type}", options, str(files[0]) if files else None
