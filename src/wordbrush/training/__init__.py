"""Training recipes on one loop; each reads and writes standard checkpoint folders."""

RECIPES = {  # name of the command -> what it does
    "autoencoder": "Train the autoencoder of a storybook model.",
    "clip": "Train the storybook's CLIP.",
    "text-to-image": "Train a text-to-image model from scratch.",
    "instruct-pix2pix": "Train an editor from a text-to-image model.",
    "instruction-writer": "Train a language model that writes instructions for captions.",
    "imagic": "Tune a model to one picture, for edits of it by Imagic.",
    "recogniser": "Train the attribute recogniser that judges edits.",
    "textual-inversion": "Learn a word for what a few pictures show.",
}
