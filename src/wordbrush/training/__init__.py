"""Training recipes on one loop; each reads and writes standard checkpoint folders."""

RECIPES = {  # name of the command -> what it does
    "autoencoder": "Train the autoencoder of a storybook model.",
    "clip": "Train the storybook's CLIP.",
    "text-to-image": "Train a text-to-image model from scratch.",
    "instruct-pix2pix": "Train an editor from a text-to-image model.",
    "emu-edit": "Train an editor of many tasks, each with a learned embedding.",
    "instruction-writer": "Train a language model that writes instructions for captions.",
    "imagic": "Tune a model to one picture, for edits of it by Imagic.",
    "task-inversion": "Teach a frozen editor of many tasks a new one, from few examples.",
    "task-predictor": "Train a model that finds the task of an instruction.",
    "recogniser": "Train the attribute recogniser that judges edits.",
    "segmenter": "Train the storybook's segmenter of what a text names, a CLIPSeg.",
    "textual-inversion": "Learn a word for what a few pictures show.",
}
