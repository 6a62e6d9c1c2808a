"""What the features of pretrained networks tell about a data set, without training a network."""
