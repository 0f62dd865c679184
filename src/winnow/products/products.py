"""K, b and norms, accumulated parameter by parameter while the gradients stream past."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from winnow.geometry.base import Preconditioner
from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.dense import Dense
from winnow.gradients.factors.outer_product import OuterProduct
from winnow.gradients.factors.precision import accumulation_dtype
from winnow.gradients.factors.scaled import Scaled
from winnow.gradients.factors.scatter import Scatter
from winnow.products.count_sketch import CountSketch
from winnow.products.gram import add_gram, chunks
from winnow.products.mode import Method
from winnow.products.sketch import has_factors
from winnow.products.tau import Target
from winnow.products.token_products import ghost_gram
from winnow.signals import Needs


class Products:
    """Sums over parameters of K_ij = <g_i, P^p g_j>, b_i = <g_i, P^a tau> and ||P^(q/2) g_i||^2.

    K and b are there once :meth:`finish` is called; with ``needs.sketch`` they are inner products of CountSketches.

    Args:
        needs: the powers p (``gram``), a (``alignment``), q (``norms``), and what else is to be summed.
        size: number of candidates B.
        dtype: precision of the gradients; sums are kept in float32 at least.
        device: where the sums live.
        method: how products are taken.
        store: ``gradients`` or ``sketches`` of candidates that arrive in pieces are kept until
            ``finish``, so that K has the products across pieces; None where all arrive at once.
        tasks: number of target tasks, for ``needs.per_task``.
    """

    def __init__(
        self,
        needs: Needs,
        size: int,
        dtype: torch.dtype,
        device: torch.device,
        method: Method,
        store: str | None = None,
        tasks: int = 0,
    ) -> None:
        self.needs, self.method, self.store = needs, method, store
        zeros = torch.zeros(size, dtype=accumulation_dtype(dtype), device=device)
        self.alignment = None if needs.alignment is None else zeros.clone()
        self.gram = None if needs.gram is None else zeros[:, None].repeat(1, size)
        # The diagonal of K serves when it is of the same power.
        self.squares = None if needs.norms is None or needs.norms == needs.gram else zeros.clone()
        self.precision = dtype
        self.target_square = None if self.alignment is None or self.gram is None else zeros.new_zeros(())
        """tau^2 in the geometry of K, so that b_i^2 <= K_ii tau^2; NaN where K and b are taken of different forms."""
        self.task_alignment = zeros.repeat(tasks, 1) if needs.per_task else None
        self.task_squares = zeros.new_zeros(tasks) if needs.per_task else None
        self.curvature = zeros.clone() if needs.curvature else None
        self._with_target: Tensor | None = None
        """Inner products of sketches of candidates and target examples, all with all, summed until ``finish``."""
        self._target_weight = zeros
        self._count = None if needs.sketch is None else CountSketch(needs.sketch, needs.sketch_seed)
        # One row more than the pool has: the target's.
        self._sketches = None if needs.sketch is None else zeros.new_zeros(size + 1, needs.sketch)
        self._targets: set[str] = set()
        self._stored: dict[str, list[tuple[slice, Tensor]]] = defaultdict(list)

    @property
    def norms(self) -> Float[Tensor, " pool"] | None:
        """||P^(q/2) g_i||."""
        if self.needs.norms is None:
            return None
        squares = self.squares if self.squares is not None else torch.diagonal(self.gram)  # type: ignore[arg-type]
        return squares.clamp_min(0).sqrt()

    def add(
        self,
        name: str,
        factor: Factor,
        preconditioner: Preconditioner,
        target: Target | None = None,
        rows: slice = slice(None),
        *,
        tasks: Sequence[Float[Tensor, "*shape"]] = (),
        bend: Float[Tensor, "*shape"] | None = None,
        on_formed: Callable[[Factor], None] | None = None,
    ) -> str:
        """Add one parameter's contribution.

        Args:
            name: the parameter.
            factor: gradients of candidates.
            preconditioner: P of this parameter.
            target: tau of this parameter; needed for ``alignment``.
            rows: which candidates they are.
            tasks: the tau of every target task; needed for ``per_task``.
            bend: H sum_j g_j of this parameter; ``curvature`` counts none where it is None.
            on_formed: asks for the gradients as they were formed for K, where they are no larger than their factors.

        Returns:
            How K was taken: ``formed`` | ``token products`` | ``sketched``.
        """
        needs = self.needs
        factor = factor.to(accumulation_dtype(factor.dtype))
        half = (needs.gram or 0) / 2
        self._add_tasks(factor, preconditioner, tasks, rows)
        if self.curvature is not None and bend is not None:
            self.curvature[rows] += factor.inner(bend)
        if self._count is not None:
            self._add_count(name, factor, preconditioner, target, rows)
            return "formed"
        in_place = self.method.mode == "sketch" and self.store is None
        joint = self._joint(preconditioner, half, target) if in_place else None
        together = joint is not None and has_factors(joint)
        aligned, kind = together or needs.alignment is None, "sketched" if together else "formed"
        scaled = factor
        if joint is None:
            scaled = preconditioner.factor(factor, half)
        elif not together:
            scaled = joint.examples(slice(0, len(factor)))
        if together:
            assert joint is not None and target is not None and target.weight is not None
            self._sketch_joint(name, joint, target.weight)
        elif in_place and has_factors(scaled):
            kind = "sketched"
            aligned = self._sketch(name, factor, scaled, half, preconditioner, target) or aligned
        elif in_place and isinstance(scaled, Scatter) and self.gram is not None:
            aligned = self._fold_columns(name, scaled, half, preconditioner, target) or aligned
        elif self.gram is not None and self.store is not None:
            self._keep(name, scaled, rows)
        elif self.gram is not None and self.method.ghosts(scaled, not aligned):
            assert isinstance(scaled, OuterProduct)
            kind = "token products"
            self.gram += ghost_gram(scaled, self.method.chunk_elements)
        elif self.gram is not None:
            if on_formed is not None and self._smaller(factor, scaled):
                factor = Dense(factor.rows(slice(None)))
                on_formed(factor)
                if isinstance(scaled, Scaled):  # P's power, as large as the parameter, is not taken twice
                    scaled = Scaled(factor, scaled.scale)
                else:
                    scaled = preconditioner.factor(factor, half)
            aligned = self._form(scaled, half, preconditioner, target) or aligned
        if not aligned:
            assert self.alignment is not None and needs.alignment is not None and target is not None
            direction = preconditioner.tensor(target.tensor(), float(needs.alignment))
            self.alignment[rows] += factor.inner(direction)
            if not rows.start:  # once, however many pieces there are
                self._bound(target.tensor(), direction)
        if self.squares is not None:
            assert needs.norms is not None
            scaled = preconditioner.factor(factor, needs.norms / 2)
            if self.method.mode == "sketch" and has_factors(scaled):
                found = self.method.sketch(name, factor).factor(scaled, self.method.chunk_elements)
                self.squares[rows] += torch.linalg.vecdot(found, found)
            else:
                for piece in chunks(scaled, self.method.chunk_elements, every_row=False):
                    block = scaled.rows(piece).flatten(1)
                    self.squares[rows] += torch.linalg.vecdot(block, block)
        return kind

    def finite(self) -> Bool[Tensor, " pool"]:
        """Which candidates' own sums are finite numbers.

        Returns:
            Of b, the norms and the diagonal of K, those that are taken.
        """
        taken = [self.alignment, self.norms, None if self.gram is None else torch.diagonal(self.gram)]
        return torch.stack([values.isfinite() for values in taken if values is not None]).all(0)

    def finish(self) -> None:
        """Take K and b from what was summed or stored on the way."""
        if self._with_target is not None:
            size, weight = len(self._with_target) - len(self._target_weight), self._target_weight
            across = self._with_target[:, size:] @ weight
            if self.gram is not None:
                self.gram += self._with_target[:size, :size]
            if self.alignment is not None:
                self.alignment += across[:size]
            if self.target_square is not None:
                self.target_square += weight @ across[size:]
        if self._sketches is not None:
            pool, target = self._sketches[:-1], self._sketches[-1]
            self.gram = pool @ pool.T
            self.alignment = None if self.alignment is None else pool @ target
            self.target_square = None if self.alignment is None else target @ target
        for name in list(self._stored):
            pieces = self._stored.pop(name)
            assert self.gram is not None
            for number, (rows, left) in enumerate(pieces):
                for others, right in pieces[number:]:
                    block = left @ right.T
                    self.gram[rows, others] += block
                    if others != rows:
                        self.gram[others, rows] += block.T

    def _smaller(self, factor: Factor, scaled: Factor) -> bool:
        """Whether gradients, to which P^(p/2) goes elementwise, take no more memory than the factors they come from."""
        if not isinstance(factor, OuterProduct):
            return False
        if isinstance(scaled, OuterProduct):  # with other sides, P is a matrix: a product with every G_i costs more
            below = scaled.left is factor.left and scaled.right is factor.right
        else:
            below = isinstance(scaled, Scaled) and scaled.factor is factor
        numbers = factor.left.shape[1] * sum(factor.shape)
        return below and factor.shape.numel() * factor.dtype.itemsize <= numbers * self.precision.itemsize

    def _form(self, scaled: Factor, half: float, preconditioner: Preconditioner, target: Target | None) -> bool:
        """K of formed gradients, and b if its power allows; says whether b is done."""
        direction = None
        if self._from_scaled(half):
            # <P^(p/2) g, P^(a-p/2) tau>: the gradients formed for K serve b as well.
            assert target is not None and self.needs.alignment is not None
            direction = preconditioner.tensor(target.tensor(), self.needs.alignment - half)
            direction = direction.to(scaled.dtype) if direction.shape else direction[None].to(scaled.dtype)
        self._add_formed(scaled, direction)
        return direction is not None

    def _bound(self, tau: Tensor, direction: Tensor) -> None:
        """Add <tau, P^(2a-p) tau>, if tau and P^a tau give it, to the square that bounds b."""
        if self.target_square is None:
            return
        assert self.needs.alignment is not None and self.needs.gram is not None
        power = 2 * self.needs.alignment - self.needs.gram
        sides = {0: (tau, tau), self.needs.alignment: (tau, direction), 2 * self.needs.alignment: (direction,) * 2}
        found = sides.get(power)
        self.target_square += torch.nan if found is None else found[0].flatten() @ found[1].flatten()

    def _add_formed(self, scaled: Factor, direction: Tensor | None) -> None:
        """Inner products of formed gradients, and with a direction if there is one."""
        assert self.gram is not None
        if direction is not None and self.target_square is not None:
            self.target_square += torch.linalg.vector_norm(direction).square()
        for rows in chunks(scaled, self.method.chunk_elements, every_row=False):
            block = (scaled.values[:, rows] if isinstance(scaled, Dense) else scaled.rows(rows)).flatten(1)
            add_gram(self.gram, block)
            if direction is not None:
                assert self.alignment is not None
                self.alignment.addmv_(block, direction[rows].flatten())

    def _fold_columns(
        self, name: str, scaled: Scatter, half: float, preconditioner: Preconditioner, target: Target | None
    ) -> bool:
        """K, and b if its power allows, of a table: columns are sketched and rows, which are few, met exactly."""
        sketch, direction = self.method.sketch(name, scaled), None
        if self._from_scaled(half):
            assert target is not None and self.needs.alignment is not None
            direction = preconditioner.tensor(target.tensor(), self.needs.alignment - half).to(scaled.dtype)
            direction = sketch.fold_columns(direction)
        self._add_formed(Scatter(scaled.tokens, sketch.fold_columns(scaled.values), scaled.size), direction)
        return direction is not None

    def _sketch_joint(self, name: str, joint: Factor, weight: Tensor) -> None:
        """K and b of sketches in one product: of candidates and target examples, which P reaches alike."""
        found = self.method.sketch(name, joint).factor(joint, self.method.chunk_elements)
        if self._with_target is None:
            self._with_target, self._target_weight = found.new_zeros(len(found), len(found)), weight.to(found.dtype)
        self._with_target.addmm_(found, found.T)

    def _sketch(
        self,
        name: str,
        factor: Factor,
        scaled: Factor,
        half: float,
        preconditioner: Preconditioner,
        target: Target | None,
    ) -> bool:
        """K and b of sketches; says whether b is done."""
        sketch = self.method.sketch(name, factor)
        found = sketch.factor(scaled, self.method.chunk_elements)
        if self.gram is not None:
            self.gram.addmm_(found, found.T)
        if self.alignment is None:
            return False
        assert target is not None and self.needs.alignment is not None
        known = self._from_scaled(half)
        if not known:
            half, found = 0.0, sketch.factor(factor, self.method.chunk_elements)
        power = self.needs.alignment - half
        weighed = None if target.examples is None else preconditioner.factor(target.examples(), power)
        if weighed is not None and has_factors(weighed):
            # P goes into the target's factors too: its gradient is not formed either.
            assert target.weight is not None
            beside = sketch.factor(weighed, self.method.chunk_elements)
            direction = target.weight.to(found.dtype) @ beside
        else:
            direction = sketch.tensor(preconditioner.tensor(target.tensor(), power).to(found.dtype))
        self.alignment.addmv_(found, direction)
        if self.target_square is not None:
            self.target_square += direction @ direction if known else torch.nan
        return True

    def _joint(self, preconditioner: Preconditioner, half: float, target: Target | None) -> Factor | None:
        """P^(p/2) of candidates and target examples as one, if K and b both take sketches of that."""
        joint = None if target is None or self.needs.alignment != 2 * half else target.joint
        return None if joint is None or not has_factors(joint) else preconditioner.factor(joint, half)

    def _from_scaled(self, half: float) -> bool:
        return self.needs.alignment is not None and self.needs.alignment >= half

    def _keep(self, name: str, scaled: Factor, rows: slice) -> None:
        if self.store == "sketches" and len(scaled.shape) == 2:
            kept = self.method.sketch(name, scaled).factor(scaled, self.method.chunk_elements)
        else:
            kept = scaled.rows(slice(None)).flatten(1)
        self._stored[name].append((rows, kept))

    def _add_tasks(self, factor: Factor, preconditioner: Preconditioner, tasks: Sequence[Tensor], rows: slice) -> None:
        if self.task_alignment is None or self.task_squares is None:
            return
        assert self.needs.alignment is not None
        for at, tau in enumerate(tasks):
            direction = preconditioner.tensor(tau, float(self.needs.alignment))
            self.task_alignment[at, rows] += factor.inner(direction)
            self.task_squares[at] += tau.square().sum()

    def _add_count(
        self, name: str, factor: Factor, preconditioner: Preconditioner, target: Target | None, rows: slice
    ) -> None:
        assert self._sketches is not None and self._count is not None and self.needs.gram is not None
        half, device = self.needs.gram / 2, self._sketches.device
        scaled, own = preconditioner.factor(factor, half), self._sketches[:-1][rows]
        height = factor.shape[0] if factor.shape else 1
        width = max(1, factor.shape[1:].numel())
        for piece in chunks(scaled, self.method.chunk_elements, every_row=False):
            line = torch.arange(height, device=device)[piece]
            place = (line[:, None] * width + torch.arange(width, device=device)).flatten()
            self._count.add(own, name, place, scaled.rows(piece).flatten(1))
        if self.needs.alignment is None or name in self._targets:
            return
        self._targets.add(name)  # once, however many pieces the candidates arrive in
        assert target is not None
        # Of every coordinate: the target reaches rows that no candidate does.
        flat = preconditioner.tensor(target.tensor(), self.needs.alignment - half).to(factor.dtype).flatten()
        for start in range(0, len(flat), self.method.chunk_elements):
            part = flat[start : start + self.method.chunk_elements]
            place = torch.arange(start, start + len(part), device=device)
            self._count.add(self._sketches[-1:], name, place, part[None])
