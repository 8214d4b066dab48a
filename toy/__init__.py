"""The embedded toy: its world (world.py), other toys (variants.py), the tiny base (base/, make_base.py)."""
