"""Find a digit in a picture: separate its ink from paper, shadows, tables, frames, boxes and lines."""

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

# Fractions of the full range of values: the least contrast of a drawing, and the darkest grey of paper. As a
# fraction of the paper's grey: the least contrast of a line.
_MIN_CONTRAST = 1 / 32
_DARKEST_PAPER = 0.1
_LINE = 0.06
# Fractions of the strongest ink: ink below `FAINT` does not count towards the digit's extent, and ink that is
# not near ink above `_CLEAR` is the remnant of a shadow.
FAINT = 0.1
_CLEAR = 0.6
# Most ink, as a fraction of the picture or its border, and of the square around a drawing.
_MAX_INK = 0.6
_MAX_INK_AROUND = 0.75
# Fractions of the picture's shorter side: the widest stroke and the smallest digit.
_MAX_STROKE = 0.45
_MIN_SIZE = 0.05
# Fractions of the largest piece of ink: pieces below `_SPECK` are dirt, pieces of at least `_LARGE` may be
# digits, and pieces farther away than `_REACH` do not belong to it.
_SPECK = 0.02
_LARGE = 0.25
_REACH = 0.5
# Fraction of the contrast: paper is even if its grey along the border varies by no more than this.
_EVEN = 0.15
# Fraction of a drawing's outline: if more than this has no edge, the drawing is the paper between strokes.
_GAP = 0.07
# Fraction of the smallest enclosing rectangle: a sheet of paper fills more than this.
_RECTANGULAR = 0.85
# The steepest slope of a line, and its greatest width as a fraction of the picture's shorter side.
_MAX_SLOPE = 0.1
_MAX_LINE_WIDTH = 1 / 28
# Photographs are first reduced to at most about this many pixels per side.
_PHOTOGRAPH_SIZE = 220
_NEIGHBOURS = np.ones((3, 3))


class SeveralDigitsError(Exception):
    """A picture has several pieces of ink as large as a digit; the argument is their number."""


class _Drawing(NamedTuple):
    """Ink from 0 to 1 and measurements of it.

    ``contrast`` is that to the surrounding paper, ``outlined`` the fraction of the outline that has such
    contrast, and ``n_digits`` the apparent number of digits.
    """

    ink: np.ndarray
    contrast: float
    outlined: float
    size: int
    n_digits: int


def find_digit(values):
    """Return the amount of ink of a digit at each pixel.

    Parameters
    ----------
    values : numpy.ndarray
        Greys from 0 to 1, two-dimensional. Ink may be darker or lighter than the paper.

    Returns
    -------
    numpy.ndarray or None
        From 0 to 1, two-dimensional, possibly smaller than ``values``; None if no digit is found.

    Raises
    ------
    SeveralDigitsError
        If there are several pieces of ink that may each be a digit.
    """
    drawing = _on_plain_paper(values) or _in_a_photograph(values)
    if drawing is None:
        return None
    if drawing.n_digits > 1:
        raise SeveralDigitsError(drawing.n_digits)
    return drawing.ink


def _on_plain_paper(values):
    """Return the drawing on even paper with nothing around it; None if the picture shows anything else."""
    if np.ptp(values) < _MIN_CONTRAST:
        return None
    border = _border(values)
    paper = np.median(border)
    distance = values - paper
    threshold = _threshold(np.abs(distance))
    # Whether ink is darker or lighter is decided by the pixels that differ most from the paper.
    if distance[np.abs(distance) > threshold].sum() < 0:
        distance = -distance
    strong = distance > threshold
    if not _is_isolated(strong, np.abs(distance) > _EVEN * distance.max()):
        return None
    if not 0 < strong.sum() <= _MAX_INK * strong.size:
        return None
    # Subtract uneven light on the paper, which a picture drawn by a program does not have.
    shade = min(3 * np.median(np.abs(border - paper)), threshold)
    ink = np.clip((distance - shade) / (np.percentile(distance[strong], 90) - shade), 0, 1)
    pieces, _n_pieces = ndimage.label(ink > FAINT, structure=_NEIGHBOURS)
    filled = ndimage.binary_fill_holes(strong)
    if _enclosing(pieces) or filled.sum() > strong.sum() and _is_rectangle(filled):
        return None
    return _drawing(-distance, ink, strong, np.zeros_like(strong), _REACH)


def _is_isolated(strong, uneven):
    """Whether ink on even paper touches at most one side of the picture, or fills it without being lines."""
    uneven_border = _border(uneven & ~_dilated(strong, 1 + min(strong.shape) // 30))
    if sum(side.any() for side in (strong[0], strong[-1], strong[:, 0], strong[:, -1])) <= 1:
        return not uneven_border.any()
    pieces, _n_pieces = ndimage.label(strong, structure=_NEIGHBOURS)
    at_border = np.setdiff1d(_border(pieces), 0)
    # Tolerate the blur of strokes along the border, which is not an edge of the paper.
    if len(at_border) > 1 or uneven_border.mean() > 0.05 or not _fills_picture(pieces == at_border[0]):
        return False
    return not _lines(uneven).any() and not _lines(uneven.T).any()


def _fills_picture(mask):
    """Whether strokes reach from side to side and from top to bottom, yet leave half of the border free."""
    height, width = _extent(mask)
    spans = height > 0.9 * mask.shape[0] and width > 0.9 * mask.shape[1] and _border(mask).mean() < 0.5
    return spans and 2 * ndimage.distance_transform_edt(mask).max() < 0.35 * min(mask.shape)


def _in_a_photograph(values):
    """Return the drawing on paper that is partly in shadow, lies on a table, is ruled, or the like.

    Search for both dark ink and light ink. With the wrong polarity, a digit's loops and bays look like ink,
    and so does a sheet on a table. A bay has no edge at its opening; a sheet is a rectangle around the digit;
    and a piece within any other shape is a loop.
    """
    step = max(1, min(round(math.sqrt(values.size) / _PHOTOGRAPH_SIZE), *values.shape))
    height, width = (n // step * step for n in values.shape)
    values = values[:height, :width].reshape(height // step, step, width // step, step).mean(axis=(1, 3))
    without_noise = ndimage.median_filter(values, 3)
    polarities = (values, without_noise), (1 - values, 1 - without_noise)
    found = [each for greys in polarities if (each := _dark_ink(*greys)) is not None]
    if not found:
        return None
    contrast = max(each.contrast for each in found)
    found = [each for each in found if each.contrast > contrast / 2]
    outlined = max(each.outlined for each in found)
    found = sorted((each for each in found if each.outlined > outlined - _GAP), key=lambda each: each.size)
    # A sheet with its drawing fills a rectangle; a digit with its loops does not.
    pieces, _n_pieces = ndimage.label(_dilated(found[0].ink + found[-1].ink > 0.5, 1))
    sheet = ndimage.binary_fill_holes(pieces == np.bincount(pieces[pieces > 0]).argmax())
    return found[0] if _is_rectangle(sheet) else found[-1]


def _is_rectangle(mask):
    """Whether a shape fills most of its smallest rectangle at any angle (Freeman and Shapira, 1975)."""
    rows, cols = np.nonzero(mask ^ ndimage.binary_erosion(mask))
    angles = np.radians(np.arange(90))[:, None]
    height = np.ptp(np.cos(angles) * rows - np.sin(angles) * cols, axis=1) + 1
    width = np.ptp(np.sin(angles) * rows + np.cos(angles) * cols, axis=1) + 1
    return mask.sum() > _RECTANGULAR * (height * width).min()


def _dark_ink(values, without_noise):
    """Return the drawing if ink is darker than paper, or None."""
    side = min(values.shape)
    # Estimate the paper's grey at each pixel: a closing removes dark shapes up to the width of a stroke, and
    # preserves shadows and tables with their edges (Serra, 1982).
    window = 2 * math.ceil(_MAX_STROKE * side / 2) + 1
    paper = ndimage.grey_closing(without_noise, window, mode="nearest")
    distance = np.maximum(paper - values, 0) / np.maximum(paper, _DARKEST_PAPER)
    distance, lines = _without_lines(distance)
    if distance.max() < _MIN_CONTRAST:
        return None
    distance = _without_surroundings(distance)
    threshold = _threshold(distance)
    strong = distance > threshold
    if not 0 < strong.sum() <= _MAX_INK * strong.size:
        return None
    # Subtract uneven light on the paper.
    paper = distance[~strong]
    shade = np.median(paper) + 3 * np.median(np.abs(paper - np.median(paper)))
    if np.median(distance[strong]) < max(_MIN_CONTRAST, shade):
        return None
    shade = min(shade, threshold)
    ink = np.clip((distance - shade) / (np.percentile(distance[strong], 90) - shade), 0, 1)
    ink[~_dilated(ink > _CLEAR, 3 + side // 40)] = 0
    return _drawing(values, ink, strong, lines, _REACH / 5)


def _without_lines(distance):
    """Remove straight lines across the whole picture, as on ruled paper, and close the strokes they cross.

    Lines are found by their projection (Radon, 1917) at each slope up to `_MAX_SLOPE`.
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
    wider = ndimage.binary_opening(mask, np.ones((1 + math.ceil(_MAX_LINE_WIDTH * min(mask.shape)), 1)))
    wider, mask = (ndimage.maximum_filter1d(each, 3, axis=0) for each in (wider, mask))
    across = np.zeros_like(mask)
    # A hundred columns are enough to find a line.
    columns = np.arange(0, width, max(1, width // 100))
    rows, cols = np.nonzero(mask[:, columns])
    wide = wider[:, columns][rows, cols]
    margin = math.ceil(_MAX_SLOPE * width / 2) + 1
    starts = np.arange(-margin, height + margin)
    for slope in np.arange(-_MAX_SLOPE, _MAX_SLOPE, 3 / width):
        falls = np.round(slope * (np.arange(width) - width / 2)).astype(int)
        start = rows - falls[columns][cols] + margin
        # Near a corner, fewer columns of a line are within the picture.
        within = np.sort(falls[columns])
        within = np.searchsorted(within, height - starts) - np.searchsorted(within, -starts)
        full = np.bincount(start, minlength=len(starts)) >= np.maximum(0.97 * within, len(columns) / 4)
        full &= np.bincount(start[wide], minlength=len(starts)) < within / 2
        if full.any():
            across |= mask & full[np.arange(height)[:, None] - falls + margin]
    return ndimage.maximum_filter1d(across, 3, axis=0)


def _without_surroundings(distance):
    """Remove what surrounds a digit, as long as any ink is left."""
    while True:
        threshold = _threshold(distance)
        pieces, _n_pieces = ndimage.label(distance > threshold, structure=_NEIGHBOURS)
        surrounding = _surrounding(pieces)
        erased = _dilated(np.isin(pieces, surrounding), 1 + min(distance.shape) // 75)
        remaining = np.where(erased, 0, distance)
        if not surrounding.size or remaining.max() <= max(_MIN_CONTRAST, threshold / 2):
            return distance
        distance = remaining


def _surrounding(pieces):
    """Return the labels of pieces that run along the picture's border or enclose other pieces."""
    contact = np.bincount(_border(pieces), minlength=pieces.max() + 1)
    along = np.flatnonzero(contact[1:] >= min(pieces.shape) / 2) + 1
    return np.union1d(along, _enclosing(pieces))


def _enclosing(pieces):
    """Return the labels of pieces that enclose others, as a box or frame does."""
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
    """Return the largest piece of ink and the pieces that belong to it, or None if they cannot be a digit.

    Pieces that touch the picture's border belong to it only within ``reach_at_border`` of its size. Contrast
    is measured away from the removed ``lines``.
    """
    side = min(ink.shape)
    pieces, n_pieces = ndimage.label(ink > FAINT, structure=_NEIGHBOURS)
    areas = np.bincount(pieces.ravel(), minlength=n_pieces + 1)
    at_border = np.isin(range(n_pieces + 1), _border(pieces))
    # A piece at the picture's border is less likely to be the digit: it may be a table or a frame.
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
    around = _dilated(own, 2 + side // 75) & ~(_dilated(own, 1) | lines)
    if not around.any():
        return None
    darkest, paper = np.percentile(values[own], 10), np.median(values[around])
    outlined = (values[around] > (darkest + paper) / 2).mean()
    if paper - darkest < _MIN_CONTRAST or size < _MIN_SIZE * side:
        return None
    if ink.max() <= 0.5 or own.sum() > _MAX_INK_AROUND * size**2 or _border(own).mean() > _MAX_INK:
        return None
    boxes = ndimage.find_objects(pieces)
    others = (n for n in range(1, n_pieces + 1) if areas[n] >= _LARGE * areas[main] and not at_border[n])
    digits = [n for n in others if away[n] > _REACH * size or _beside(boxes[n - 1], boxes[main - 1])]
    return _Drawing(ink, paper - darkest, outlined, size, 1 + len(digits))


def _beside(box, other):
    """Whether two pieces are beside or above each other and of similar height, unlike parts of one digit."""
    (rows, cols), (other_rows, other_cols) = box, other
    heights = sorted((rows.stop - rows.start, other_rows.stop - other_rows.start))
    beside = _gap(cols, other_cols) >= 0 and _gap(rows, other_rows) < 0
    # Strokes of one digit that do not meet are closer.
    above = _gap(rows, other_rows) >= 0.15 * heights[1] and _gap(cols, other_cols) < 0
    return (beside or above) and heights[0] >= 0.7 * heights[1]


def _gap(part, other):
    """Return the distance between two slices; negative if they overlap."""
    return max(part.start, other.start) - min(part.stop, other.stop)


def _border(values):
    return np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])


def _extent(mask):
    """Return height and width of the bounding box of the true pixels."""
    [rows, cols] = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return rows[-1] - rows[0] + 1, cols[-1] - cols[0] + 1


def _dilated(mask, width):
    return ndimage.maximum_filter(mask, 2 * width + 1)


def _threshold(values):
    """Return the threshold that separates the values into two classes best (Otsu, 1979)."""
    counts, edges = np.histogram(values, 256)
    # At least 1, because equal values form a single class.
    below, above = (np.maximum(n, 1) for n in (np.cumsum(counts)[:-1], values.size - np.cumsum(counts)[:-1]))
    sums = np.cumsum(counts * (edges[:-1] + edges[1:]) / 2)
    means_differ = sums[:-1] / below - (sums[-1] - sums[:-1]) / above
    return edges[1:-1][np.argmax(below * above * means_differ**2)]
