import io
import struct
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from deeplearning_tutorial.classify.pictures import read_picture

SIZE = 120


def seven(ink="black", paper="white", mode="RGB", size=(SIZE, SIZE), at=(30, 20), scale=1.0):
    image = Image.new(mode, size, paper)
    points = [(at[0] + scale * x, at[1] + scale * y) for x, y in ((0, 0), (50, 0), (20, 70))]
    ImageDraw.Draw(image).line(points, fill=ink, width=round(8 * scale), joint="curve")
    return image


@pytest.fixture
def read(tmp_path):
    """Save a picture, read it back, and return it as 28 x 28 bytes."""

    def read(image, name="picture.png", **options):
        image.save(tmp_path / name, **options)
        pixels = read_picture(tmp_path / name)
        assert pixels.shape == (784,) and pixels.dtype == np.float32
        return np.round(pixels * 256).reshape(28, 28)

    return read


def extent(image, axis):
    inked = np.flatnonzero(image.any(axis))
    return inked[-1] - inked[0] + 1


def centre_of_mass(image):
    return np.array([(image.sum(axis) * np.arange(28)).sum() / image.sum() for axis in (1, 0)])


def difference(image, other):
    """Mean absolute difference relative to the ink."""
    return abs(image - other).sum() / other.sum()


def test_the_digit_fits_20_by_20_pixels_is_centred_by_mass_and_keeps_its_proportions(read):
    image = read(seven())
    assert extent(image, 1) == 20
    # Drawn 70 high and 50 wide, plus the width of the line.
    assert 13 <= extent(image, 0) <= 16
    assert abs(centre_of_mass(image) - 14).max() <= 0.5
    assert image.max() == 255 and (image == 0).mean() > 0.7


def test_wide_ink_is_20_pixels_wide(read):
    image = Image.new("L", (200, 90), 255)
    ImageDraw.Draw(image).rectangle((40, 30, 139, 54), fill=0)
    image = read(image)
    assert (extent(image, 0), extent(image, 1)) == (20, 5)
    np.testing.assert_array_equal(image[12:17, 4:24], np.full((5, 20), 255))


@pytest.mark.parametrize("light_on_dark", [False, True])
def test_an_image_of_mnist_is_read_back_unchanged(read, sample, light_on_dark):
    for pixels in sample[2][0][:20]:
        original = np.round(pixels * 256).reshape(28, 28)
        drawn = original if light_on_dark else 255 - original
        assert difference(read(Image.fromarray(drawn.astype(np.uint8))), original) < 0.05


@pytest.mark.parametrize(
    "image",
    [
        seven("white", "black"),
        seven("navy", "khaki"),
        seven("yellow", "darkgreen"),
        seven(0, 255, "L"),
        seven(0, 1, "1"),
        seven("red").convert("P"),
        seven("red").convert("CMYK").convert("RGB"),
        seven("black", (0, 0, 0, 0), "RGBA"),
        seven("white", (255, 255, 255, 0), "RGBA"),
        seven((0, 255), (0, 0), "LA"),
        seven(0, 1, "1", size=(900, 130), at=(600, 40)),
    ],
    ids=lambda image: image.mode,
)
def test_colour_mode_and_position_make_no_difference(read, image):
    assert difference(read(image), read(seven())) < 0.06


@pytest.mark.parametrize("scale", [0.5, 7.3])
def test_the_size_of_the_picture_makes_little_difference(read, scale):
    image = seven(size=(round(SIZE * scale),) * 2, at=(30 * scale, 20 * scale), scale=scale)
    # Another digit differs by more than 1.
    assert difference(read(image), read(seven())) < 0.35


@pytest.mark.parametrize("ink, paper", [(0, 65535), (60000, 3000), (0, 4095)])
def test_sixteen_bits_per_pixel_are_supported(read, ink, paper):
    values = np.where(np.asarray(seven(0, 1, "1")), paper, ink).astype(np.uint16)
    assert difference(read(Image.fromarray(values)), read(seven(0, 1, "1"))) < 0.06


def test_floats_of_a_tiff_are_read_whatever_their_range(read):
    values = np.where(np.asarray(seven(0, 1, "1")), -0.25, 3.5).astype(np.float32)
    assert difference(read(Image.fromarray(values), "picture.tiff"), read(seven(0, 1, "1"))) < 0.06


def test_the_cameras_orientation_is_respected(read):
    exif = Image.Exif()
    # The camera was turned: the stored rows are columns of the upright picture.
    exif[0x0112] = 6
    turned = seven().transpose(Image.Transpose.ROTATE_90)
    assert difference(read(turned, "photo.jpg", exif=exif, quality=95), read(seven())) < 0.1


def test_uneven_light_noise_and_dust_in_a_photograph_are_ignored(read):
    rng = np.random.default_rng(5)
    clean = seven("black", "white", "L", size=(400, 400), at=(120, 80), scale=3)
    shade = np.linspace(1, 0.75, 400)
    photo = 30 + 190 * shade * np.asarray(clean, np.float64) / 255 + rng.normal(0, 4, (400, 400))
    photo[370:374, 20:24] = 30
    assert difference(read(Image.fromarray(photo.astype(np.uint8))), read(clean)) < 0.1


def test_lopsided_ink_stays_within_the_image(read):
    image = Image.new("L", (300, 300), 255)
    pen = ImageDraw.Draw(image)
    pen.line((50, 250, 250, 250), fill=0, width=2)
    pen.rectangle((50, 50, 90, 250), fill=0)
    image = read(image)
    assert (extent(image, 0), extent(image, 1)) == (20, 20)


def test_a_hard_shadow_across_the_digit_makes_little_difference(read):
    clean = seven("black", "white", "L", size=(240, 240), at=(60, 40), scale=2)
    light = np.where(np.add.outer(np.arange(240), np.arange(240)) < 250, 1, 0.6)
    photo = Image.fromarray((np.asarray(clean) * light).astype(np.uint8))
    assert difference(read(photo), read(clean)) < 0.1


@pytest.mark.parametrize("light_on_dark", [False, True])
@pytest.mark.parametrize("surroundings", ["table", "frame", "bar", "box", "rules", "squares"])
def test_surroundings_and_lines_across_the_digit_are_ignored(read, surroundings, light_on_dark):
    clean = seven("black", "white", "L", size=(240, 240), at=(85, 65), scale=1.4)
    photo = clean.copy()
    pen = ImageDraw.Draw(photo)
    if surroundings == "table":
        photo = Image.new("L", (240, 240), 110)
        photo.paste(clean.crop((60, 40, 190, 190)), (60, 40))
    elif surroundings == "frame":
        pen.rectangle((0, 0, 239, 239), outline=0, width=14)
    elif surroundings == "bar":
        pen.rectangle((0, 0, 16, 239), fill=0)
    elif surroundings == "box":
        pen.rectangle((60, 45, 185, 190), outline=0, width=3)
    else:
        for at in range(15, 240, 40):
            pen.line((0, at, 239, at), fill=120, width=2)
            if surroundings == "squares":
                pen.line((at, 0, at, 239), fill=120, width=2)
    expected = read(clean)
    if light_on_dark:
        photo = Image.fromarray(255 - np.asarray(photo))
    assert difference(read(photo), expected) < 0.1


def rejection(path):
    with pytest.raises(ValueError) as caught:
        read_picture(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def write_noise(path):
    Image.fromarray(np.random.default_rng(2).integers(256, size=(50, 50), dtype=np.uint8)).save(path)


def write_mostly_ink(path):
    image = Image.new("L", (50, 50), 255)
    ImageDraw.Draw(image).rectangle((3, 3, 46, 46), fill=0)
    image.save(path)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: Image.new("L", (50, 40), 200).save(path),
        lambda path: Image.new("L", (1, 1)).save(path),
        lambda path: Image.new("RGBA", (50, 40), (9, 9, 9, 0)).save(path),
        lambda path: seven((250, 250, 250)).save(path),
        write_mostly_ink,
    ],
)
def test_a_picture_without_a_digit_is_rejected_by_name(tmp_path, write):
    write(tmp_path / "p.png")
    message = rejection(tmp_path / "p.png")
    assert "shows no digit: it is blank or has more ink than paper; draw one digit" in message


def test_several_digits_are_rejected_with_their_number(tmp_path):
    image = seven(size=(240, SIZE))
    image.paste(seven(size=(SIZE, SIZE)), (100, 0))
    image.save(tmp_path / "p.png")
    message = rejection(tmp_path / "p.png")
    assert "p.png shows 2 pieces of ink as large as a digit; crop it to one digit" in message


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG"])
def test_a_picture_with_bad_exif_data_is_read(read, format):
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\xff\xff\xff\xff\xff\xff"
    assert difference(read(seven(), f"p.{format}", exif=exif), read(seven())) < 0.1


KINDS = [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"gAMA", b"cHRM", b"pHYs", b"sRGB", b"tIME"]


@pytest.mark.parametrize("content", [b"", b"a", b"a\0", b"a\0\0bcd", b"a\0\1bcd"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_png_with_metadata_that_cannot_be_understood_is_read(tmp_path, kind, content):
    file = io.BytesIO()
    seven().save(file, "PNG")
    whole, path = file.getvalue(), tmp_path / "p.png"
    path.write_bytes(whole)
    expected = read_picture(path)
    sums = struct.pack(">I", zlib.crc32(kind + content))
    path.write_bytes(whole[:33] + struct.pack(">I", len(content)) + kind + content + sums + whole[33:])
    np.testing.assert_array_equal(read_picture(path), expected)


def test_a_png_with_bad_metadata_keeps_its_orientation_and_transparency(tmp_path, read):
    image, file = seven().convert("RGBA"), io.BytesIO()
    image.putalpha(ImageOps.invert(seven().convert("L")))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    whole = file.getvalue()
    bad = struct.pack(">I", 3) + b"tEXta\0b" + b"\1\2\3\4"
    (tmp_path / "p.png").write_bytes(whole[:33] + bad + whole[33:])
    assert difference(256 * read_picture(tmp_path / "p.png"), read(seven()).ravel()) < 0.1


@pytest.mark.parametrize("kind", [b"tEXt", b"iCCP", b"eXIf", b"gAMA", b"tRNS"])
def test_only_a_critical_png_chunk_with_a_bad_checksum_is_an_error(tmp_path, kind):
    file = io.BytesIO()
    seven().save(file, "PNG")
    whole = file.getvalue()
    bad = struct.pack(">I", 5) + kind + b"a\0bcd" + b"\1\2\3\4"
    path = tmp_path / "p.png"
    path.write_bytes(whole)
    expected = read_picture(path)
    # The header takes 8 + 25 bytes.
    path.write_bytes(whole[:33] + bad + whole[33:])
    np.testing.assert_array_equal(read_picture(path), expected)
    path.write_bytes(whole[:32] + bytes([whole[32] ^ 1]) + whole[33:])
    rejection(path)


@pytest.mark.parametrize("ink, paper", [(0, 255), (1, 0), (200, 30), (0, 65535)])
def test_integers_of_32_bits_are_scaled_by_the_range_they_use(read, ink, paper):
    values = np.where(np.asarray(seven(0, 1, "1")), paper, ink).astype(np.int32)
    assert difference(read(Image.fromarray(values), "picture.tiff"), read(seven(0, 1, "1"))) < 0.06


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"seven", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_a_file_that_is_not_a_picture_is_rejected_by_name(tmp_path, data):
    (tmp_path / "p.png").write_bytes(data)
    assert "is not a picture in one of the formats PNG, JPEG" in rejection(tmp_path / "p.png")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_a_damaged_picture_is_read_or_rejected_by_name(tmp_path, format):
    file = io.BytesIO()
    seven().save(file, format)
    whole = file.getvalue()
    path = tmp_path / "p"
    path.write_bytes(whole)
    undamaged = read_picture(path)
    for length in range(0, len(whole) - 12, len(whole) // 12):
        path.write_bytes(whole[:length])
        rejection(path)
    rng = np.random.default_rng(7)
    for at in rng.integers(len(whole), size=60):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            assert read_picture(path).shape == undamaged.shape
        except ValueError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    "width, height, bits",
    [
        (12_000, 12_000, 1),
        (30_000, 30_000, 1),
        (1, 89_000_000, 8),
        (89_000_000, 1, 8),
        (2, 44_000_000, 1),
        (9_400, 9_400, 16),
        (30_001, 2, 8),
    ],
)
def test_a_decompression_bomb_is_rejected_before_it_is_decoded(tmp_path, width, height, bits):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    data = zlib.compress(bytes(1_000_000))
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
    tracemalloc.start()
    try:
        message = rejection(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 21
    finally:
        tracemalloc.stop()
    assert "bomb.png has too many pixels" in message and "make it smaller" in message


def test_pixels_that_are_not_finite_are_rejected(tmp_path):
    Image.fromarray(np.full((9, 9), np.nan, np.float32)).save(tmp_path / "p.tiff")
    assert "p.tiff is damaged" in rejection(tmp_path / "p.tiff")


def test_a_missing_picture_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.png"):
        read_picture(tmp_path / "absent.png")


def test_without_pillow_the_message_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="need Pillow.*pip install pillow"):
        read_picture(tmp_path / "p.png")
