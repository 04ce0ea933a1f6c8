from .overlays import case_picture as case_picture
