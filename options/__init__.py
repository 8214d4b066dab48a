"""Off by default, to be skipped at first reading.

controls.py   the arms that show whether a model looks: what is shown in place of a crop, calls made for it
toolbox.py    the tools by name, a second one among them
"""
