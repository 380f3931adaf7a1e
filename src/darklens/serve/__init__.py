"""The web server: a face beside the command line, on the same readers, preparation and classifiers.

Needs the extra `serve`. Images are read in processes of their own (`reading`, which imports neither torch nor FastAPI).
"""
