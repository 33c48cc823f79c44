from __future__ import annotations

import pickle
import struct
import threading
import zlib

import numpy as np
import pytest
import simplejpeg
from encoded_pictures import JPEGS, OTHERS, PICTURES, by_pillow, encoded, needs_pictures, real_pictures, saved
from PIL import Image

from wiseft_dist.data.decode import KEPT_BYTES, DecodeError, Decoder, decode, jpeg_size


def png_that_promises(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


def jpeg_that_promises(width: int, height: int) -> bytes:
    data = bytearray(encoded("RGB", "jpeg"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


DAMAGED = {
    "nothing": b"",
    "text": b"<html>404</html>",
    "two bytes of a jpeg": b"\xff\xd8",
    "half a jpeg": PICTURES["jpeg"][:1200],
    "half a CMYK jpeg": PICTURES["jpeg CMYK"][:1200],
    "half a png": PICTURES["png"][:3000],
    "half a webp": PICTURES["webp"][:300],
    "a png with a wrong checksum": PICTURES["png"][:60] + b"???" + PICTURES["png"][63:],
    "a png larger than Pillow allows": png_that_promises(20_000, 20_000),
    "a jpeg larger than Pillow allows": jpeg_that_promises(65_000, 65_000),
    "a program for another program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
}


@pytest.mark.parametrize("data", PICTURES.values(), ids=PICTURES.keys())
def test_every_kind_of_picture_decodes_to_the_very_pixels_of_pillow(data):
    expected = np.asarray(by_pillow(data))
    pixels = decode(data)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert np.array_equal(pixels, expected)
    assert np.array_equal(Decoder()(data), expected)


def test_jpegs_in_colour_and_grey_go_through_the_faster_decoder_and_all_else_through_pillow(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("Pillow was asked")

    monkeypatch.setattr(Image, "open", refuse)
    for data in JPEGS.values():
        decode(data)
    for name, data in OTHERS.items():
        with pytest.raises(DecodeError, match="Pillow was asked"):
            decode(data)
        if name == "jpeg scratched":
            with pytest.raises(ValueError):
                simplejpeg.decode_jpeg(data)


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_picture_is_an_error_with_a_reason_and_never_a_grey_half(data):
    for decoder in (decode, Decoder()):
        with pytest.raises(DecodeError) as caught:
            decoder(data)
        assert 10 < len(str(caught.value)) < 200
        assert "\n" not in str(caught.value)


def test_random_damage_gives_pixels_or_a_decode_error_and_nothing_else():
    random, failed = np.random.default_rng(0), 0
    for data in PICTURES.values():
        for _ in range(20):
            broken = bytearray(data)
            for place in random.integers(2, len(data), 6):
                broken[place] = random.integers(256)
            try:
                assert decode(bytes(broken)).ndim == 3
            except DecodeError:
                failed += 1
    assert 20 < failed < 20 * len(PICTURES)


def test_a_decoder_reuses_its_memory_and_decode_does_not():
    decoder = Decoder()
    large, small = decoder(PICTURES["jpeg"]), decoder(JPEGS["jpeg greyscale"])
    assert np.shares_memory(large, small)
    first = decode(PICTURES["jpeg"])
    kept = first.copy()
    decode(JPEGS["jpeg greyscale"])
    assert np.array_equal(first, kept)


def test_a_decoder_follows_pictures_that_grow_and_shrink():
    decoder = Decoder()
    for shape in ((8, 9), (300, 200), (301, 200), (16, 16), (700, 800)):
        data = encoded("RGB", "jpeg", shape)
        assert np.array_equal(decoder(data), np.asarray(by_pillow(data)))


def test_a_decoder_keeps_no_memory_of_an_exceptionally_large_picture():
    decoder = Decoder()
    data = saved(Image.new("L", (7000, 6500)), "jpeg")
    pixels = decoder(data)
    assert pixels.nbytes > KEPT_BYTES
    assert not np.shares_memory(pixels, decoder(JPEGS["jpeg"]))


def test_a_decoder_is_sent_to_another_process_without_its_buffer():
    decoder = Decoder()
    decoder(encoded("RGB", "jpeg", (700, 800)))
    sent = pickle.dumps(decoder)
    assert len(sent) < 200
    assert np.array_equal(pickle.loads(sent)(JPEGS["jpeg"]), decode(JPEGS["jpeg"]))


def test_threads_that_share_a_decoder_do_not_share_its_buffer():
    decoder, found = Decoder(), []
    mine = decoder(JPEGS["jpeg"])
    thread = threading.Thread(target=lambda: found.append(decoder(JPEGS["jpeg 4:4:4"])))
    thread.start()
    thread.join()
    assert not np.shares_memory(mine, found[0])
    assert np.array_equal(mine, decode(JPEGS["jpeg"]))


def test_a_jpeg_is_shrunk_to_no_less_than_asked_for_and_only_where_that_is_faster():
    decoder, data = Decoder(), encoded("RGB", "jpeg", (640, 800))
    size = jpeg_size(data)
    assert size == (640, 800)
    assert decoder.decode_sized(data, size, (320, 300)).shape == (320, 400, 3)
    assert decoder.decode_sized(data, size, (160, 200)).shape == (160, 200, 3)
    assert decoder.decode_sized(data, size, (321, 300)).shape == (640, 800, 3)
    assert decoder.decode_sized(data, size).shape == (640, 800, 3)


class TestRealPictures:
    pytestmark = needs_pictures

    @pytest.mark.parametrize("folder", ["photographs", "pacs/photo/test", "pacs/sketch/test"])
    def test_real_jpegs_decode_to_the_very_pixels_of_pillow(self, folder):
        decoder, num_fast = Decoder(), 0
        for index, data in enumerate(real_pictures(folder)):
            if folder == "photographs" or index % 10 == 0:
                num_fast += jpeg_size(data) is not None
                assert np.array_equal(decoder(data), np.asarray(by_pillow(data))), index
        assert (num_fast > 45) == (folder != "pacs/sketch/test")  # the sketches are PNGs, whatever their names say
