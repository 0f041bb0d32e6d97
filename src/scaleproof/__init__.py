"""Does training on N devices run faster than on one, learn as well, and is it sound?"""

__version__ = "0.1.0"
