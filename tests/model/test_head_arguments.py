"""Arguments that a head does not have, and values of another type than theirs."""

import re
import shlex

import pytest

from data.taxonomy import Taxonomy
from errors import UserError
from model.build import build_model
from settings.load import build_parser, load_config
from settings.wrong_types import WRITTEN

TAXONOMY = Taxonomy(names=("car", "truck"), category_ids=(0, 1))


def built(*given):
    """The detector of the embedded default with these keys."""
    cfg = load_config(list(given))
    return build_model(cfg.model, TAXONOMY, cfg.data.image_size)


def refused(*given):
    with pytest.raises(UserError) as error:
        built(*given)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("num_queries", "many", "model.head_args.num_queries many: must be a whole number"),
        ("dropout", "x", "model.head_args.dropout x: must be a number"),
        ("with_box_refine", "perhaps", "model.head_args.with_box_refine perhaps: must be true or"),
    ],
)
def test_a_value_of_another_type_is_told_what_it_must_be(name, value, told):
    assert refused(f"--model.head_args.{name}", value).startswith(told)


def test_a_misspelt_argument_is_told_what_is_meant():
    told = refused("--model.head_args.num_querys", "40")
    assert told.endswith(
        "num_querys: DeformableDetrConfig has no such argument - did you mean num_queries?"
    )


def test_a_misspelt_argument_comes_before_those_of_another_head():
    told = refused("--model.head", "deimv2", "--model.head_args.num_querys", "40")
    assert "num_querys: Deimv2Config has no such argument - did you mean num_queries?" in told
    assert "num_queries: 40," in told


@pytest.mark.parametrize("head", ["detr", "rt_detr_v2"])
def test_another_head_says_what_it_has_too_and_that_keeps_it_small(head):
    told = refused("--model.head", head)
    (pasted,) = re.findall(r"--model.head_args '.*?'", told)
    model = built("--model.head", head, *shlex.split(pasted)).model
    assert (model.config.num_queries, model.config.d_model) == (8, 128)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) < 1_000_000


def test_every_list_and_table_has_an_example_that_is_right():
    for key, example in WRITTEN.items():
        value = example[1:].partition("'")[0]
        build_parser("p").parse_args([f"--{key}", value])
