import numpy as np
import pytest
from gymnasium import spaces

from popgraft.errors import ConfigError
from popgraft.rollout.spaces_of import action_encoder, action_spec_of, fields_of, gym_action_space, spaces_of
from popgraft.spaces import ActionSpec, ObsSpec

RNG = np.random.default_rng(0)
DISCRETE = spaces.Discrete(2)


def delivered(space: spaces.Space, raw: np.ndarray) -> np.ndarray:
    """What an agent sees of a raw batch."""
    (field,) = fields_of(space).values()
    out = np.full((len(raw), *field.spec.shape), 77, dtype=np.uint8 if field.spec.image else np.float32)
    field.write(raw, out)
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_numbers_of_any_shape_become_float32(dtype: type) -> None:
    space = spaces.Box(-5, 5, (2, 3), dtype)
    raw = RNG.integers(-5, 5, (4, 2, 3)).astype(dtype)
    assert spaces_of(space, DISCRETE).obs == {"obs": ObsSpec((2, 3))}
    np.testing.assert_array_equal(delivered(space, raw), raw.astype(np.float32))


def test_a_scalar_becomes_a_vector_of_one() -> None:
    space = spaces.Box(np.float64(-1), np.float64(1), (), np.float64)
    found = spaces_of(space, DISCRETE)
    assert found.obs == {"obs": ObsSpec((1,))}
    assert found.observation_space.shape == (1,)
    np.testing.assert_array_equal(delivered(space, np.array([0.5, -1.0])), [[0.5], [-1.0]])


def test_images_have_their_channels_first() -> None:
    raw = RNG.integers(0, 256, (4, 8, 6, 3)).astype(np.uint8)
    last, first = spaces.Box(0, 255, (8, 6, 3), np.uint8), spaces.Box(0, 255, (3, 8, 6), np.uint8)
    for space, batch in ((last, raw), (first, np.moveaxis(raw, -1, 1))):
        found = spaces_of(space, DISCRETE)
        assert found.obs == {"obs": ObsSpec((3, 8, 6), image=True)}
        assert found.observation_space == first
        image = delivered(space, batch)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, raw.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("space", [spaces.Box(0, 1, (8, 6, 3), np.uint8), spaces.Box(0, 255, (8, 6), np.uint8)])
def test_other_uint8_arrays_are_numbers(space: spaces.Box) -> None:
    assert spaces_of(space, DISCRETE).obs == {"obs": ObsSpec(space.shape)}


def test_choices_become_indicators() -> None:
    np.testing.assert_array_equal(delivered(spaces.Discrete(4, start=-1), np.array([-1, 2, 0])), np.eye(4)[[0, 3, 1]])
    pair = spaces.MultiDiscrete([2, 3], start=[0, 5])
    expected = np.concatenate([np.eye(2)[[1, 0]], np.eye(3)[[0, 2]]], axis=1)
    np.testing.assert_array_equal(delivered(pair, np.array([[1, 5], [0, 7]])), expected)
    table = spaces.MultiDiscrete([[2, 2], [2, 3]])
    assert delivered(table, np.array([[[0, 1], [1, 2]]])).tolist() == [[1, 0, 0, 1, 0, 1, 0, 0, 1]]
    bits = RNG.integers(0, 2, (5, 3)).astype(np.int8)
    np.testing.assert_array_equal(delivered(spaces.MultiBinary(3), bits), bits.astype(np.float32))


def test_a_dict_keeps_its_keys() -> None:
    camera = spaces.Box(0, 255, (9, 9, 3), np.uint8)
    found = spaces_of(
        spaces.Dict({"camera": camera, "gear": spaces.Discrete(5), "speed": spaces.Box(-1, 1, (2,))}), DISCRETE
    )
    assert found.obs == {"camera": ObsSpec((3, 9, 9), image=True), "gear": ObsSpec((5,)), "speed": ObsSpec((2,))}
    assert found.observation_space["camera"].shape == (3, 9, 9)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Tuple([DISCRETE]), r"the observation space Tuple\(.*\) is not supported; supported are Box, Discrete"),
        (
            spaces.Dict({"a": spaces.Dict({"b": DISCRETE})}),
            r"Dict\('b': Discrete\(2\)\) of key 'a' is not supported.*FlattenObservation",
        ),
        (spaces.Dict({"a": spaces.Text(3)}), "of key 'a' is not supported"),
        (spaces.Dict({}), "has no keys"),
        (spaces.Dict({3: DISCRETE}), "has the key 3; keys must be strings"),
    ],
)
def test_other_observations_are_refused(space: spaces.Space, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spaces_of(space, DISCRETE)


@pytest.mark.parametrize(
    "space", [spaces.Tuple([DISCRETE]), spaces.Dict({"a": DISCRETE}), spaces.Text(3), spaces.MultiDiscrete([[2, 2]])]
)
def test_other_actions_are_refused(space: spaces.Space) -> None:
    with pytest.raises(ConfigError, match=r"the action space .* is not supported; supported are Discrete"):
        spaces_of(DISCRETE, space)


def test_action_specs() -> None:
    assert action_spec_of(spaces.Discrete(3, start=2)) == ActionSpec("discrete", (3,), (2,), dtype="int64")
    assert action_spec_of(spaces.MultiDiscrete([2, 3], start=[0, 4])) == ActionSpec(
        "multi_discrete", (2, 3), (0, 4), (2,), dtype="int64"
    )
    assert action_spec_of(spaces.MultiBinary((2, 2))) == ActionSpec("multi_binary", (2,) * 4, (0,) * 4, (2, 2))
    box = spaces.Box(np.array([[-1.0, -np.inf]]), np.array([[1.0, np.inf]]), dtype=np.float64)
    bounds = {"low": (-1.0, -np.inf), "high": (1.0, np.inf)}
    assert action_spec_of(box) == ActionSpec("box", shape=(1, 2), dtype="float64", **bounds)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=2),
        spaces.MultiDiscrete([2, 3], start=[0, 4]),
        spaces.MultiBinary((2, 2)),
    ],
)
def test_encoded_choices_are_the_spaces_own(space: spaces.Space) -> None:
    spec = action_spec_of(space)
    stored = RNG.integers(0, spec.sizes, (5, 4, spec.dims))
    encoded = action_encoder(space)(stored)
    assert encoded.dtype == space.dtype
    assert encoded.shape == (5, 4, *spec.shape)
    assert not np.shares_memory(encoded, stored)
    assert all(space.contains(action) for row in encoded for action in row)
    np.testing.assert_array_equal(encoded.reshape(5, 4, spec.dims) - np.array(spec.start), stored)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_box_actions_are_clipped_and_never_nan(dtype: type) -> None:
    # 0.1 is not representable: the bound of a float64 space lies below the nearest float32.
    high = np.array([[0.1, 7.0]]) if dtype != np.int32 else np.array([[3, 7]])
    space = spaces.Box(-high.astype(dtype), high.astype(dtype), dtype=dtype)
    stored = np.array([[9.0, -9.0], [np.nan, 1.0], [np.inf, -np.inf], [0.05, 2.6]], dtype=np.float32)
    encoded = action_encoder(space)(stored)
    assert encoded.dtype == dtype
    assert all(space.contains(action) for action in encoded)
    top = space.high[0]
    middle = 0.05 if dtype != np.int32 else 0
    last = 2.6 if dtype != np.int32 else 3
    np.testing.assert_allclose(encoded[:, 0], [[top[0], -7], [0, 1], [top[0], -7], [middle, last]], rtol=1e-6)
    assert np.isnan(stored[1, 0])


def test_zero_for_nan_is_clipped_too() -> None:
    assert action_encoder(spaces.Box(2.0, 3.0, (1,)))(np.array([[np.nan]], dtype=np.float32)) == 2.0


def test_infinite_actions_stay_finite_without_bounds() -> None:
    encoded = action_encoder(spaces.Box(-np.inf, np.inf, (1,)))(np.array([[np.inf]], dtype=np.float32))
    assert np.isfinite(encoded).all()


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=2),
        spaces.MultiDiscrete([3, 2], start=[0, 5]),
        spaces.MultiDiscrete([3, 2], np.int32, start=[0, 5]),
        spaces.MultiBinary((2, 3)),
        spaces.Box(np.array([[-1.0], [-2]], np.float32), np.array([[1.0], [np.inf]], np.float32)),
        spaces.Box(-0.1, 0.1, (2,), np.float64),
        spaces.Box(0, 255, (2, 2), np.uint8),
        spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (1,), np.int64),
    ],
)
def test_an_action_has_its_space_back(space: spaces.Space) -> None:
    assert gym_action_space(action_spec_of(space)) == space
