"""The storybook: a small world of pictures that come with their words, to train and judge editors on.

A scene is a place under a time of day and a weather, with one to four things in it: animals, plants, food,
vehicles, people, each drawn by one of the Fluent Emoji sprites, some of them in a chosen colour, pose or
expression. A style or a tone may lie over the whole picture. All of it is drawn from a seed, so there are
as many scenes as one likes, and the exact masks, depth and caption of each are known.

An edit changes one fact of a scene, and only the pixels that hang on that fact: it is a pair of pictures,
an instruction, and both captions. Some pairs of a thing and a place, and some phrasings of every
instruction, are kept out of training for the test.

`catalogue` lists what there is; `sprites` and `photographs` fetch the pictures; `scenes` and `edits` draw
descriptions; `wording` puts them into words; `places`, `render` and `styles` into pixels; `dataset` keeps
rendered edits on disk; `recogniser` reads pictures back into facts.
"""
