"""What pixel values become before a network sees them, by the names that recipes and weight files use."""

# What pixels from 0 to 255 become: (divisor, offset) of pixel / divisor - offset; three numbers where channels differ.
SCALES = {
    "-1..1": (127.5, 1.0),  # the ViTs: mean = std = 0.5
    "0..1": (255.0, 0.0),  # the blog's two networks
    "imagenet": ([58.395, 57.12, 57.375], [0.485 / 0.229, 0.456 / 0.224, 0.406 / 0.225]),  # PaddleClas's files
}
