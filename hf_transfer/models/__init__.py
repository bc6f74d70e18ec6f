"""Models: a checkpoint -> a pretrained or scratch model with its head known -> what trains -> saved, and a model again."""
