"""The embedded toy: its world (world.py), other toys (variants.py), and the tiny base (base/, make_base.py)."""
