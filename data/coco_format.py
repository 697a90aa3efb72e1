"""COCO content, written in one place: annotation files and result lists."""

from collections.abc import Sequence
from typing import Any

from data.masks import to_rle
from data.objects import Objects
from data.taxonomy import Taxonomy


def coco_content(
    images: Sequence[dict[str, Any]], objects: Objects, taxonomy: Taxonomy
) -> dict[str, Any]:
    """Content of an annotation file.

    Args:
        images: entries with at least an `id`, and a size where objects have masks.
        objects: `image` counts them; areas and iscrowd too; masks become run lengths.

    Annotation ids start at 1: the COCO evaluation takes a match with id 0 for no match.
    """
    ids = [image["id"] for image in images]
    annotations = [
        {
            "id": number,
            "image_id": ids[image],
            "category_id": taxonomy.category_ids[kind],
            "bbox": box,
            "area": area,
            "iscrowd": int(crowd),
        }
        for number, (image, kind, box, area, crowd) in enumerate(
            _rows(objects, "image", "classes", "boxes", "areas", "iscrowd"), 1
        )
    ]
    if objects.masks is not None:
        sizes = [(image["height"], image["width"]) for image in images]
        for row, image, mask in zip(annotations, objects.image, objects.masks, strict=True):
            row["segmentation"] = to_rle(mask, sizes[image]).coco()
    categories = [
        {"id": category, "name": name}
        for category, name in zip(taxonomy.category_ids, taxonomy.names, strict=True)
    ]
    return {"images": list(images), "annotations": annotations, "categories": categories}


def coco_results(
    objects: Objects, image_ids: Sequence[int | str], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Predictions in COCO's results format; `objects.image` counts `image_ids`."""
    results = [
        {
            "image_id": image_ids[image],
            "category_id": category_ids[kind],
            "bbox": box,
            "score": score,
        }
        for image, kind, box, score in _rows(objects, "image", "classes", "boxes", "scores")
    ]
    if objects.masks is not None:
        for row, mask in zip(results, objects.masks, strict=True):
            row["segmentation"] = mask.coco()
    return results


def _rows(objects: Objects, *names: str) -> Any:
    columns = objects.columns()
    return zip(*(columns[name].tolist() for name in names), strict=True)
