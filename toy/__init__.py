"""The embedded toy.

world      the images and the questions
variants   other toys, by the name of the data set
base/      the tiny base
tiny       its model, tokenizer and processor, untrained
lessons    what it is taught
make_base  teaches it, and measures what it can do
rehearsal  the toy in the layout of the paper's files
"""
