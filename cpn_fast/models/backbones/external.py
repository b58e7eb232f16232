"""Backbones by name that are not of this package: `timm:NAME` and `package.module:function`."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

from torch import nn

from cpn_fast.config.backbones import TIMM
from cpn_fast.files.errors import DataError
from cpn_fast.models.backbones.common import Backbone
from cpn_fast.models.backbones.feature_backbone import FeatureBackbone

TIMM_STRIDE = 16
"""Stride that is asked of a network of timm; half of what most have, for a CAM is read off its last map."""

log = logging.getLogger(__name__)


def external_backbone(name: str, frozen: bool, pretrained: bool = False) -> Backbone:
    """Build the backbone that a name of the form `timm:NAME` or `package.module:function` means.

    Args:
        name: the name. A function of one's own is called without arguments and returns a `Backbone`, or a module that
            `FeatureBackbone` takes.
        frozen: see `create_backbone`.
        pretrained: see `create_backbone`.

    Raises:
        DataError: if it cannot be imported or built, or is no backbone.
    """
    module = _timm_module(name, pretrained) if name.startswith(TIMM) else _own_module(name)
    if isinstance(module, Backbone):
        if module.frozen and not frozen:
            module.norms_frozen = False
            module.requires_grad_(True)
        module.freeze(frozen)
        return module
    if not isinstance(module, nn.Module):
        raise DataError(f"--backbone {name}: gives a {type(module).__name__}, expected a torch module")
    try:
        return FeatureBackbone(module, frozen)
    except DataError as error:
        raise DataError(f"--backbone {name}: {error}") from error


def _timm_module(name: str, pretrained: bool) -> Any:
    try:
        timm = import_module("timm")
    except ImportError as error:
        raise DataError(
            f"--backbone {name}: timm cannot be imported ({error}); install it: pip install timm"
        ) from error
    model = name.removeprefix(TIMM)
    options: dict[str, Any] = {"features_only": True, "pretrained": pretrained}
    try:
        return timm.create_model(model, output_stride=TIMM_STRIDE, **options)
    except Exception as error:  # many architectures have one stride only, and each refuses another in its own way
        log.info("%s with output_stride %d: %s; trying its own", name, TIMM_STRIDE, error)
    try:
        return timm.create_model(model, **options)
    except Exception as error:  # timm raises RuntimeError and more, e.g. for a name that it does not know
        raise DataError(
            f"--backbone {name}: timm cannot build it with features_only ({type(error).__name__}: {error}); "
            "timm.list_models(pretrained=True) lists the names; without a network give --weights FILE"
        ) from error


def _own_module(name: str) -> Any:
    place, _, function = name.partition(":")
    try:
        found = getattr(import_module(place), function)
    except (ImportError, TypeError, ValueError) as error:
        raise DataError(
            f"--backbone {name}: module {place} cannot be imported ({error}); install it, or put its folder on "
            "PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise DataError(f"--backbone {name}: module {place} has no {function!r}") from error
    if not callable(found):
        raise DataError(f"--backbone {name}: {function} is a {type(found).__name__}, expected a function or class")
    try:
        return found()
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"--backbone {name}: {function}() failed ({type(error).__name__}: {error}); it is called without arguments"
        ) from error
