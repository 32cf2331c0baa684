"""What vector code works on: parts of arrays as kernels describe them, and as pointers of LLVM.

No bounds are checked, and nothing is copied. Offsets are flat and counted in elements, whatever an array's
shape.
"""

import inspect
from functools import partial
from typing import Any, NamedTuple

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from deeplearning_tutorial.nnet.dispatch.numba.llvm.emitter import Emitter


class Elements(NamedTuple):
    """The elements of an array from one on: ``elements[i]`` is ``array[first + i]``."""

    array: Any
    first: int


class Rows(NamedTuple):
    """Rows in an array, ``step`` elements apart: ``rows[r, i]`` is ``array[first + r * step + i]``."""

    array: Any
    first: int
    step: int


class Grid(NamedTuple):
    """A grid in an array: ``grid[r, c, i]`` is ``array[first + r * row_step + c * column_step + i]``."""

    array: Any
    first: int
    row_step: int
    column_step: int


class ArrayPointer(NamedTuple):
    """A whole array in LLVM code: a pointer to its first element, and its length if it has one dimension."""

    start: Any
    length: Any


class RowsPointer(NamedTuple):
    """`Rows` in LLVM code."""

    emitter: Emitter
    start: Any
    step: Any

    def row(self, r):
        """Return a pointer to the first element of row ``r``, an int or an LLVM integer."""
        return self.emitter.advance(self.start, self.emitter.times(self.step, r))


class GridPointer(NamedTuple):
    """`Grid` in LLVM code."""

    emitter: Emitter
    start: Any
    row_step: Any
    column_step: Any

    def at(self, r, c):
        """Return a pointer to the first element of a place in the grid."""
        row = self.emitter.advance(self.start, self.emitter.times(self.row_step, r))
        return self.emitter.advance(row, self.emitter.times(self.column_step, c))


def vector_intrinsic(returns=lambda element: types.void):
    """Make an intrinsic of ``emit(emitter, *operands)``, which emits LLVM code and returns a value or None.

    The operands are the arguments that jitted code passes: arrays as `ArrayPointer`, `Elements` as a pointer
    to the first, `Rows` as `RowsPointer`, `Grid` as `GridPointer`, other named tuples with their fields
    converted likewise, integers in 64 bits, other numbers as they are. ``returns`` takes the Numba type of
    the first array's elements, of the first array of floats if there is one, and returns the result's type.
    """

    def decorator(emit):
        def template(typingctx, *arguments):
            element = _element_type(arguments)

            def codegen(context, builder, signature, values):
                emitter = Emitter(context, builder, element)
                operands = map(partial(_operand, emitter), signature.args, values)
                result = emit(emitter, *operands)
                return context.get_dummy_value() if result is None else result

            return returns(element)(*(_passed_type(argument, element) for argument in arguments)), codegen

        _, *names = inspect.signature(emit).parameters
        template.__name__, template.__doc__ = emit.__name__, emit.__doc__
        template.__module__, template.__qualname__ = emit.__module__, emit.__qualname__
        template.__signature__ = inspect.Signature(
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("typingctx", *names)
        )
        return intrinsic(template)

    return decorator


def _element_type(arguments):
    elements = [array.dtype for array in arrays_in(arguments)]
    return next((element for element in elements if element in types.real_domain), elements[0])


def arrays_in(numba_types):
    """Return the types of all arrays among these, and within tuples, in their order."""
    found = []
    for numba_type in numba_types:
        if isinstance(numba_type, types.Array):
            found.append(numba_type)
        elif isinstance(numba_type, types.BaseTuple):
            found += arrays_in(numba_type)
    return found


def _passed_type(argument, element):
    """Return the type as which an intrinsic takes a number, not that of a literal or of fewer bits."""
    if isinstance(argument, types.Boolean):
        return types.boolean
    if isinstance(argument, types.Integer):
        return types.intp
    return element if isinstance(argument, types.Float) else argument


def _operand(emitter, numba_type, value):
    context, builder = emitter.context, emitter.builder
    if isinstance(numba_type, types.Array):
        array = context.make_array(numba_type)(context, builder, value)
        return ArrayPointer(array.data, builder.extract_value(array.shape, 0) if numba_type.ndim else None)
    if isinstance(numba_type, types.Integer):
        return context.cast(builder, value, numba_type, types.intp)
    if not isinstance(numba_type, types.BaseNamedTuple):
        return value
    fields = [
        _operand(emitter, field_type, field)
        for field_type, field in zip(numba_type, cgutils.unpack_tuple(builder, value), strict=True)
    ]
    kind = numba_type.instance_class
    if kind not in (Elements, Rows, Grid):
        return kind(*fields)
    array, first, *steps = fields
    start = emitter.advance(array.start, first)
    if kind is Elements:
        return start
    return (RowsPointer if kind is Rows else GridPointer)(emitter, start, *steps)
