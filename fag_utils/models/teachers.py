"""The large networks that the small one learns from: chapter 04 trains them, data/weights keeps them."""

from fag_utils.labels import N_EVERY_AGE
from fag_utils.models.checkpoints import kept_weights
from fag_utils.models.face_mobilenet import face_mobilenet
from fag_utils.models.face_resnet import face_resnet
from fag_utils.models.light import efficientnet_lite0
from fag_utils.models.mobilefacenet import add_age_branch, gender_classifier

TEACHERS = {"imagenet": efficientnet_lite0, "faces": face_resnet}


def kept_teacher(backbone, path):
    """One of them, with heads for the ages 0..116 and for gender: its weights from a file of `keep_weights`.

    backbone : function of the size in pixels, a value of TEACHERS. WeightsError: no such file, or of another network
    """
    network = add_age_branch(gender_classifier(backbone(112)), ages=N_EVERY_AGE)
    kept_weights(network, path)
    return network


def kept_teachers(kept):
    """All of them, in pairs as `training.Teacher` takes them: the first of each learned from half 0 of the people.

    kept : function of a name -> path of its weights (`course.Run.kept`)
    """
    return [tuple(kept_teacher(backbone, kept(f"04_teacher_{name}_{half}")) for half in (0, 1))
            for name, backbone in TEACHERS.items()]


def face_networks(kept):
    """The networks that know faces by the million and are left as they are: to imitate, and for a `FrozenTeacher`.

    kept : as for `kept_teachers`
    """
    return [face_mobilenet(112, kept("face_mobilenet")), face_resnet(112, "faces")]
