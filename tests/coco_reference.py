"""Truth and predictions as pycocotools takes them."""

from dataclasses import replace

from data.coco_format import coco_content, coco_results


def ground_truth(split, taxonomy):
    """A split as COCO content; image ids are places in the split, category ids class indices."""
    images = [{"id": i, "width": r.width, "height": r.height} for i, r in enumerate(split.records)]
    return coco_content(images, split.objects, _by_index(taxonomy))


def result_list(predictions, split, taxonomy):
    """Predictions in COCO's results format, with the ids of `ground_truth`."""
    return coco_results(predictions.objects, range(len(split)), _by_index(taxonomy).category_ids)


def _by_index(taxonomy):
    """The classes with their indices for category ids."""
    return replace(taxonomy, category_ids=tuple(range(len(taxonomy.names))))
