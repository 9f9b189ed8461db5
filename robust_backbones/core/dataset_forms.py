"""Descriptions of custom detection datasets on the command line, for help texts and errors."""

# Kind of annotations -> its paths in `NAME=kind:paths`.
FORMS = {
    "coco": "IMAGES:ANNOTATIONS.json",
    "voc": "ROOT:SPLIT",
    "yolo": "data.yaml:SPLIT",
    "mask": "IMAGES:MASKS",
}
_ALL = [f"NAME={kind}:{paths}" for kind, paths in FORMS.items()]
SYNTAX = ", ".join(_ALL[:-1]) + f" or {_ALL[-1]}"

VOC_LAYOUT = "Annotations/*.xml, JPEGImages/ and ImageSets/Main/SPLIT.txt"
RANDOM_SPLITS = ("train", "val", "all")  # of a folder that has no ImageSets

LAYOUTS = f"""datasets of your own:
  {_ALL[0]}
    folder of the images, annotation file
  {_ALL[1]}
    ROOT has {VOC_LAYOUT}.
    Without ImageSets, the folders may have any names, and SPLIT is train (80 % of the images,
    chosen at random), val (the others) or all.
  {_ALL[2]}
    Ultralytics data.yaml with the splits train, val, test; polygons become masks
  {_ALL[3]}
    for semantic segmentation: folder of the images, folder of PNG masks with the same names. The
    values are class indices, 255 is ignored. MASKS/classes.txt names one class per line."""
