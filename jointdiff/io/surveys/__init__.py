"""Archive files to scene folders: one module a family of archive products.

A reader takes the files of one field and gives a Product a band; ``scene_folder.write_products`` makes a scene of them.
"""
