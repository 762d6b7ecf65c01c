"""What an artifact can be turned into for others to serve: a folder, what SageMaker loads, a container image."""

from model_packaging.forms.export import Form, export
from model_packaging.forms.exported import Exported
from model_packaging.forms.folder import Folder
from model_packaging.forms.image import Image
from model_packaging.forms.sagemaker import SageMaker

__all__ = ["Exported", "Folder", "Form", "Image", "SageMaker", "export"]
