"""Linear systems that are known only by what they do to a vector."""

from collections.abc import Callable

from torch import Tensor


def conjugate_gradient(
    operator: Callable, precondition: Callable, rhs: Tensor, start: Tensor, tolerance: float, steps: int
) -> Tensor:
    """Solves operator(x) = rhs for a batch (B, …) of symmetric positive systems (Hestenes & Stiefel 1952).

    Each stops when its own preconditioned residual √(rᵀ M r / n) is below ``tolerance``, whatever the others do: with M
    the posterior covariance that is the error in posterior standard deviations.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))

    x, residual = start, rhs - operator(start)
    z = precondition(residual)
    direction, rz = z, dot(residual, z)
    for _ in range(steps):
        open_ = rz > tolerance**2 * rhs[0].numel()
        if not bool(open_.any()):
            break
        image = operator(direction)
        alpha = open_ * rz / dot(direction, image).clamp(min=1e-30)
        x, residual = x + alpha * direction, residual - alpha * image
        z = precondition(residual)
        new = dot(residual, z)
        direction, rz = z + open_ * new / rz.clamp(min=1e-30) * direction, new
    return x
