"""``python -m trimtab.experiments.tabulated.prior``: adds to the tables what a search would know beforehand.

The same as a search finds out: influences from the model and its calibration data, latencies from the kernel table of
this device or a similar one, bytes from shapes. Nothing comes from the tabulated measurements.
"""

import sys

from rich.console import Console

from ...core.errors import RunError
from ...search.knowledge import Knowledge
from ..knowledge import gather_knowledge
from ..offer import Offer
from ..preparation import Preparation
from ..spec import Spec
from .table import read_table, write_table
from .table_builder import TableBuilder
from .table_recipes import TABLE_RECIPES, find_recipe
from .tabulated_problem import TABLE_FOLDER


def find_prior(builder: TableBuilder) -> Knowledge:
    """Returns what a search of the recipe's space would know before its first trial.

    Raises:
        RunError: options would be dropped, so that the knowledge would be of another space.
    """
    recipe = builder.recipe
    spec = Spec.model_validate(
        {"name": recipe.name, "model": recipe.model, "data": recipe.data, "target": {"runtime": recipe.runtime}}
    )
    preparation = Preparation(spec, builder.device, builder.dataset, builder.prepared, Offer(builder.space))
    smaller, knowledge = gather_knowledge(preparation)
    if smaller.space != builder.space:
        reasons = "; ".join(f"{drop.layer} {drop.option}: {drop.reason}" for drop in smaller.offer.dropped)
        raise RunError(f"the space of {recipe.name} must keep all of its options, but some are dropped ({reasons})")
    return knowledge


def main(names: list[str]) -> None:
    """Writes the knowledge into the tables of these recipes, or of all that have one."""
    console = Console(width=120)
    for name in names or TABLE_RECIPES:
        path = TABLE_FOLDER / f"{name}.npz"
        if not names and not path.exists():
            continue
        table = read_table(path)
        knowledge = find_prior(TableBuilder.open(find_recipe(name)))
        write_table(path, table.with_knowledge(knowledge))
        priced = f"{len(knowledge.latency)} settings priced" if knowledge.latency else "no prices"
        console.print(f"{name}: {priced}, influence of {sum(map(len, knowledge.influence))} options")


if __name__ == "__main__":
    main(sys.argv[1:])
