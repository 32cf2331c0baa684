"""Find a digit on its paper: ink is told from paper, shadows, tables, frames, boxes and lines."""

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

# Fractions of the full range of values: less contrast than this is no drawing, and paper counts as no darker
# than this. Of the paper's grey: less than this is no line.
_LEAST_CONTRAST = 1 / 32
_DARKEST_PAPER = 0.1
_LINE = 0.06
# Of the strongest ink: less than this does not count for the digit's extent, and what is no edge of ink of
# more than this is the remnant of a shadow.
FAINT = 0.1
_CLEAR = 0.6
# Of the picture, or of its border: more ink than this is none; of the square around a drawing, likewise.
_MOST_INK = 0.6
_MOST_INK_AROUND = 0.75
# Of the picture's shorter side: what is wider than this is no stroke, and what is smaller no digit.
_WIDEST_STROKE = 0.45
_LEAST_SIZE = 0.05
# Of the largest piece of ink: smaller pieces than this are specks, as large ones digits, and those farther
# away than this do not belong to it.
_SPECK = 0.02
_LARGE = 0.25
_REACH = 0.5
# Of the contrast: paper whose grey differs by no more than this along the border is even.
_EVEN = 0.15
# Of a drawing's outline: where more than this lacks an edge, it is the paper between strokes.
_GAP = 0.07
# Of the smallest rectangle around it: a sheet fills more than this.
_RECTANGULAR = 0.85
# Lines rise or fall by at most this, and are no wider than this part of the picture's shorter side.
_ASKEW = 0.1
_WIDEST_LINE = 1 / 28
# Photographs are first reduced to at most about this many pixels a side.
_PHOTOGRAPH_SIZE = 220
_NEIGHBOURS = np.ones((3, 3))


class SeveralDigitsError(Exception):
    """A picture shows this many pieces of ink as large as a digit."""


class _Drawing(NamedTuple):
    """Ink from 0 to 1 and what is known about it.

    Its contrast to the paper around, the fraction of its outline where there is such contrast, its size, and
    how many digits there seem to be.
    """

    ink: np.ndarray
    contrast: float
    outlined: float
    size: int
    n_digits: int


def find_digit(values):
    """Return how much ink of a digit there is at each place.

    Parameters
    ----------
    values : numpy.ndarray
        Greys from 0 to 1, two-dimensional. Ink is darker than its paper, or lighter.

    Returns
    -------
    numpy.ndarray or None
        From 0 to 1, two-dimensional, possibly smaller than ``values``; None where no digit can be told.

    Raises
    ------
    SeveralDigitsError
        If several pieces of ink may be a digit each.
    """
    drawing = _on_plain_paper(values) or _in_a_photograph(values)
    if drawing is None:
        return None
    if drawing.n_digits > 1:
        raise SeveralDigitsError(drawing.n_digits)
    return drawing.ink


def _on_plain_paper(values):
    """Return what is drawn on even paper with nothing around it; None where the picture shows more."""
    if np.ptp(values) < _LEAST_CONTRAST:
        return None
    border = _border(values)
    paper = np.median(border)
    distance = values - paper
    threshold = _threshold(np.abs(distance))
    # Ink is darker than the paper, or lighter, as most of what is far from the paper.
    if distance[np.abs(distance) > threshold].sum() < 0:
        distance = -distance
    strong = distance > threshold
    if not _stands_free(strong, np.abs(distance) > _EVEN * distance.max()):
        return None
    if not 0 < strong.sum() <= _MOST_INK * strong.size:
        return None
    # Uneven light on the paper is no ink; in a picture drawn by a program there is none.
    shade = min(3 * np.median(np.abs(border - paper)), threshold)
    ink = np.clip((distance - shade) / (np.percentile(distance[strong], 90) - shade), 0, 1)
    pieces, _n_pieces = ndimage.label(ink > FAINT, structure=_NEIGHBOURS)
    filled = ndimage.binary_fill_holes(strong)
    if _enclosing(pieces) or filled.sum() > strong.sum() and _is_rectangle(filled):
        return None
    return _drawing(-distance, ink, strong, np.zeros_like(strong), _REACH)


def _stands_free(strong, uneven):
    """Whether ink on even paper touches one side of the picture at most, or fills it and is not of lines."""
    beside = _border(uneven & ~_widened(strong, 1 + min(strong.shape) // 30))
    if sum(side.any() for side in (strong[0], strong[-1], strong[:, 0], strong[:, -1])) <= 1:
        return not beside.any()
    pieces, _n_pieces = ndimage.label(strong, structure=_NEIGHBOURS)
    at_border = np.setdiff1d(_border(pieces), 0)
    # The blur of strokes along the border is no edge of the paper.
    if len(at_border) > 1 or beside.mean() > 0.05 or not _fills_picture(pieces == at_border[0]):
        return False
    return not _lines(uneven).any() and not _lines(uneven.T).any()


def _fills_picture(mask):
    """Whether strokes reach from side to side and from top to bottom, yet leave half of the border free."""
    height, width = _extent(mask)
    spans = height > 0.9 * mask.shape[0] and width > 0.9 * mask.shape[1] and _border(mask).mean() < 0.5
    return spans and 2 * ndimage.distance_transform_edt(mask).max() < 0.35 * min(mask.shape)


def _in_a_photograph(values):
    """Return what is drawn on paper that is partly in the shadow, lies on a table, is ruled, or the like.

    Ink is looked for in both senses. In the wrong one a digit's loops and bays seem to be ink, and the sheet
    that lies on a table. Bays have no edge where they open; a sheet is a rectangle around the digit, and what
    lies within another shape is a loop.
    """
    step = max(1, min(round(math.sqrt(values.size) / _PHOTOGRAPH_SIZE), *values.shape))
    height, width = (n // step * step for n in values.shape)
    values = values[:height, :width].reshape(height // step, step, width // step, step).mean(axis=(1, 3))
    without_noise = ndimage.median_filter(values, 3)
    senses = (values, without_noise), (1 - values, 1 - without_noise)
    found = [each for greys in senses if (each := _dark_ink(*greys)) is not None]
    if not found:
        return None
    contrast = max(each.contrast for each in found)
    found = [each for each in found if each.contrast > contrast / 2]
    outlined = max(each.outlined for each in found)
    found = sorted((each for each in found if each.outlined > outlined - _GAP), key=lambda each: each.size)
    # A sheet and what is drawn on it fill a rectangle, a digit and its loops do not.
    pieces, _n_pieces = ndimage.label(_widened(found[0].ink + found[-1].ink > 0.5, 1))
    sheet = ndimage.binary_fill_holes(pieces == np.bincount(pieces[pieces > 0]).argmax())
    return found[0] if _is_rectangle(sheet) else found[-1]


def _is_rectangle(mask):
    """Whether it fills most of the smallest rectangle around it, at any angle (Freeman and Shapira, 1975)."""
    rows, cols = np.nonzero(mask ^ ndimage.binary_erosion(mask))
    angles = np.radians(np.arange(90))[:, None]
    height = np.ptp(np.cos(angles) * rows - np.sin(angles) * cols, axis=1) + 1
    width = np.ptp(np.sin(angles) * rows + np.cos(angles) * cols, axis=1) + 1
    return mask.sum() > _RECTANGULAR * (height * width).min()


def _dark_ink(values, without_noise):
    """Return what is drawn, given that it is darker than its paper."""
    side = min(values.shape)
    # The paper's grey at a place: closing removes what is dark and no wider than a digit's strokes may be,
    # and leaves shadows and tables as they are, with their edges (Serra, 1982).
    window = 2 * math.ceil(_WIDEST_STROKE * side / 2) + 1
    paper = ndimage.grey_closing(without_noise, window, mode="nearest")
    distance = np.maximum(paper - values, 0) / np.maximum(paper, _DARKEST_PAPER)
    distance, lines = _without_lines(distance)
    if distance.max() < _LEAST_CONTRAST:
        return None
    distance = _without_surroundings(distance)
    threshold = _threshold(distance)
    strong = distance > threshold
    if not 0 < strong.sum() <= _MOST_INK * strong.size:
        return None
    # Uneven light on the paper is no ink.
    rest = distance[~strong]
    shade = np.median(rest) + 3 * np.median(np.abs(rest - np.median(rest)))
    if np.median(distance[strong]) < max(_LEAST_CONTRAST, shade):
        return None
    shade = min(shade, threshold)
    ink = np.clip((distance - shade) / (np.percentile(distance[strong], 90) - shade), 0, 1)
    ink[~_widened(ink > _CLEAR, 3 + side // 40)] = 0
    return _drawing(values, ink, strong, lines, _REACH / 5)


def _without_lines(distance):
    """Take away straight lines across the whole picture, as on ruled paper, and close the strokes they cross.

    Lines are told by their projection (Radon, 1917), for each slope that paper lies askew by.
    """
    lines = np.zeros(distance.shape, bool)
    for turned, turned_lines in ((distance, lines), (distance.T, lines.T)):
        across = _lines(turned > _LINE)
        if across.any():
            turned[across] = ndimage.grey_closing(np.where(across, 0, turned), (9, 1))[across]
            turned_lines |= across
    return distance, lines


def _lines(mask):
    """Return where ``mask`` is true along nearly all of a thin line from the left to the right."""
    height, width = mask.shape
    wider = ndimage.binary_opening(mask, np.ones((1 + math.ceil(_WIDEST_LINE * min(mask.shape)), 1)))
    wider, mask = (ndimage.maximum_filter1d(each, 3, axis=0) for each in (wider, mask))
    across = np.zeros_like(mask)
    # A hundred columns tell a line as well as all of them.
    columns = np.arange(0, width, max(1, width // 100))
    rows, cols = np.nonzero(mask[:, columns])
    wide = wider[:, columns][rows, cols]
    margin = math.ceil(_ASKEW * width / 2) + 1
    starts = np.arange(-margin, height + margin)
    for slope in np.arange(-_ASKEW, _ASKEW, 3 / width):
        falls = np.round(slope * (np.arange(width) - width / 2)).astype(int)
        start = rows - falls[columns][cols] + margin
        # A line near a corner has fewer columns within the picture.
        within = np.sort(falls[columns])
        within = np.searchsorted(within, height - starts) - np.searchsorted(within, -starts)
        full = np.bincount(start, minlength=len(starts)) >= np.maximum(0.97 * within, len(columns) / 4)
        full &= np.bincount(start[wide], minlength=len(starts)) < within / 2
        if full.any():
            across |= mask & full[np.arange(height)[:, None] - falls + margin]
    return ndimage.maximum_filter1d(across, 3, axis=0)


def _without_surroundings(distance):
    """Take away what surrounds a digit, as long as something is left."""
    while True:
        threshold = _threshold(distance)
        pieces, _n_pieces = ndimage.label(distance > threshold, structure=_NEIGHBOURS)
        surrounding = _surrounding(pieces)
        erased = _widened(np.isin(pieces, surrounding), 1 + min(distance.shape) // 75)
        left = np.where(erased, 0, distance)
        if not surrounding.size or left.max() <= max(_LEAST_CONTRAST, threshold / 2):
            return distance
        distance = left


def _surrounding(pieces):
    """Return which pieces are no digit, but run along the picture's border or enclose other pieces."""
    contact = np.bincount(_border(pieces), minlength=pieces.max() + 1)
    along = np.flatnonzero(contact[1:] >= min(pieces.shape) / 2) + 1
    return np.union1d(along, _enclosing(pieces))


def _enclosing(pieces):
    """Return which pieces enclose others, as a box or frame does."""
    found = []
    for n, box in enumerate(ndimage.find_objects(pieces), 1):
        extent = max(part.stop - part.start for part in box)
        if extent > min(pieces.shape) / 4 and _encloses(pieces[box] == n, pieces[box]):
            found.append(n)
    return found


def _encloses(mask, pieces):
    within = ndimage.binary_fill_holes(mask) & ~mask & (pieces > 0)
    return within.any() and max(_extent(within)) > max(_extent(mask)) / 4


def _drawing(values, ink, strong, lines, reach_at_border):
    """Return the largest piece of ink and what belongs to it, or None where that is no digit.

    What touches the picture's border belongs to it within ``reach_at_border`` of its size. Contrast is judged
    beside the lines that were taken away.
    """
    side = min(ink.shape)
    pieces, n_pieces = ndimage.label(ink > FAINT, structure=_NEIGHBOURS)
    areas = np.bincount(pieces.ravel(), minlength=n_pieces + 1)
    at_border = np.isin(range(n_pieces + 1), _border(pieces))
    # What touches the picture's border is less likely the digit: table, frame, or what lies beside it.
    weight = np.bincount(pieces[strong], minlength=n_pieces + 1) * np.where(at_border, 0.25, 1)
    weight[0] = 0
    main = weight.argmax()
    if weight[main] == 0:
        return None
    own = pieces == main
    size = max(_extent(own))
    away = ndimage.minimum(ndimage.distance_transform_edt(~own), pieces, range(n_pieces + 1))
    belong = (areas >= _SPECK * areas[main]) & (away <= np.where(at_border, reach_at_border, _REACH) * size)
    belong[0] = True
    ink[~belong[pieces]] = 0
    own &= strong
    around = _widened(own, 2 + side // 75) & ~(_widened(own, 1) | lines)
    if not around.any():
        return None
    darkest, beside = np.percentile(values[own], 10), np.median(values[around])
    outlined = (values[around] > (darkest + beside) / 2).mean()
    if beside - darkest < _LEAST_CONTRAST or size < _LEAST_SIZE * side:
        return None
    if ink.max() <= 0.5 or own.sum() > _MOST_INK_AROUND * size**2 or _border(own).mean() > _MOST_INK:
        return None
    boxes = ndimage.find_objects(pieces)
    others = (n for n in range(1, n_pieces + 1) if areas[n] >= _LARGE * areas[main] and not at_border[n])
    digits = [n for n in others if away[n] > _REACH * size or _beside(boxes[n - 1], boxes[main - 1])]
    return _Drawing(ink, beside - darkest, outlined, size, 1 + len(digits))


def _beside(box, other):
    """Whether two pieces of ink stand side by side, nearly as high, as no parts of one digit do."""
    (rows, cols), (other_rows, other_cols) = box, other
    heights = sorted((rows.stop - rows.start, other_rows.stop - other_rows.start))
    apart = cols.start >= other_cols.stop or other_cols.start >= cols.stop
    in_line = rows.start < other_rows.stop and other_rows.start < rows.stop
    return apart and in_line and heights[0] >= 0.7 * heights[1]


def _border(values):
    return np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])


def _extent(mask):
    """Return height and width of the box around what is true."""
    [rows, cols] = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return rows[-1] - rows[0] + 1, cols[-1] - cols[0] + 1


def _widened(mask, width):
    return ndimage.maximum_filter(mask, 2 * width + 1)


def _threshold(values):
    """Return what divides the values into two classes that differ most (Otsu, 1979)."""
    counts, edges = np.histogram(values, 256)
    # At least 1: values that are all alike are one class.
    below, above = (np.maximum(n, 1) for n in (np.cumsum(counts)[:-1], values.size - np.cumsum(counts)[:-1]))
    sums = np.cumsum(counts * (edges[:-1] + edges[1:]) / 2)
    means_differ = sums[:-1] / below - (sums[-1] - sums[:-1]) / above
    return edges[1:-1][np.argmax(below * above * means_differ**2)]
