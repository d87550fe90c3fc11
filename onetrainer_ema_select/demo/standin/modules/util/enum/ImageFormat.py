from enum import Enum


class ImageFormat(Enum):
    PNG = "PNG"

    def __str__(self):
        return self.value

    def extension(self):
        return ".png"
