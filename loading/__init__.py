"""Rows as other people write them: their files, images and fields.

files.py    text files and parquet, and the images that rows name
images.py   any image made RGB: upright, on white, 8 bits a colour
fields.py   questions, answers, options and boxes

What can't be understood raises ValueError: the row is then named and left out, never guessed.
"""
