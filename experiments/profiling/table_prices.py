"""What the kernel table of a device says of policies, before anything is run."""

import logging
from dataclasses import dataclass
from functools import cached_property

from ...core.cache import cache_folder
from ...core.errors import MeasurementError, PolicyError, TableError
from ...evaluators.device import KernelDevice
from ...hw_profiles.kernels.kernel_table import KernelTable
from ...hw_profiles.kernels.shipped import find_related_table, open_table
from ...hw_profiles.kernels.table_identity import TableIdentity
from ...hw_profiles.latency import Latency
from ...hw_profiles.prices.price_list import build_pricer
from ...hw_profiles.prices.pricing import GraphPrice, GraphPricer
from ...spaces.policy import Policy
from ..preparation import Preparation

_log = logging.getLogger(__name__)

#: a price of which more than this is predicted, not looked up, is no promise
_MOST_UNSEEN = 0.5


@dataclass
class TablePrices:
    """Prices the policies of a model by lowering them; nothing is run."""

    preparation: Preparation
    device: KernelDevice
    table: KernelTable

    @cached_property
    def _pricer(self) -> GraphPricer:
        return build_pricer(self.table, model=self.preparation.table_name)

    @cached_property
    def original(self) -> GraphPrice:
        """The price of the untouched model, with which every promise is compared.

        Raises:
            MeasurementError: the runtime refuses it.
        """
        return self.price(Policy({}))

    def price(self, policy: Policy) -> GraphPrice:
        """Prices one policy, in seconds of the machine on which the table was measured.

        Raises:
            PolicyError: the policy cannot be built for this model.
            MeasurementError: the runtime refuses it.
        """
        preparation = self.preparation
        artifact = preparation.build(policy.untrained)  # trained weights take as long as untrained ones
        return self._pricer.price(self.device.lower(artifact), model=preparation.table_name)

    def promise(self, policy: Policy, original_s: float) -> Latency | None:
        """Returns what a policy should take where the original takes ``original_s`` seconds.

        None where the table knows too little of the policy's kernels, or it cannot be lowered.
        """
        try:
            price, original = self.price(policy), self.original
        except (PolicyError, MeasurementError) as error:
            _log.info("no price: %s", error)
            return None
        if max(price.unseen_share, original.unseen_share) > _MOST_UNSEEN:
            return None
        factor = original_s / original.seconds
        return Latency(
            median_s=price.seconds * factor,
            iqr_s=0.0,
            runs=0,
            source="table",
            reference_s=original_s,
            standard_error_s=price.standard_error_s * factor,
        )


def open_prices(preparation: Preparation, *, without_source: str = "") -> TablePrices | None:
    """Opens the table of the preparation's device; None where the runtime tells no kernels or nothing is known.

    Args:
        preparation: model and device.
        without_source: what came from sources that begin so is left out: a promise must not know what it promises.
    """
    device = preparation.device
    if not isinstance(device, KernelDevice):
        return None
    try:
        table = open_table(TableIdentity.of(device.identify()), cache_folder())
    except TableError as error:
        _log.warning("the kernel table is not used: %s", error)
        return None
    if without_source:
        table = table.without_source(without_source)
    return TablePrices(preparation, device, table) if len(table) else None


def open_related_prices(preparation: Preparation) -> TablePrices | None:
    """Opens the table of the most similar device, for comparing policies, never for promises; None without one."""
    device = preparation.device
    if not isinstance(device, KernelDevice):
        return None
    table = find_related_table(TableIdentity.of(device.identify()), cache_folder())
    return None if table is None else TablePrices(preparation, device, table)
