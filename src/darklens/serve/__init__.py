"""The web server: the readers, the image preparation and the classifiers of the command line, behind HTTP.

Needs the extra `serve`. Separate processes read the uploaded files (`reader_processes`, which imports neither torch nor
FastAPI), or search telescope images for perturbers (`search_processes`).
"""
