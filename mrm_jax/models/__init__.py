"""Networks: encoders, decoders, the segmentor that joins them, and the Rebuilder of masked
representation modelling."""
