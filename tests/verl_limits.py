"""The limits of test_verl.py, on both sides of it: ours and verl's environment."""

LIMITS = {
    "look_pixels": 12544,
    "crop_pixels": 12544,
    "max_turns": 4,
    "max_turn_tokens": 48,
    "max_tokens": 320,
}
