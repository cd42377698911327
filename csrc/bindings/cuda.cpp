// fastssl._cuda: the CUDA kernels, on raw device addresses and a stream; fastssl.ops checks what it passes.
#include <stdexcept>
#include <string>

#include "../cuda/augment.h"
#include "../cuda/block_masking.h"
#include "../cuda/decode_ab.h"
#include "../cuda/distillation_loss.h"
#include "../cuda/ema_update.h"
#include "../cuda/encode_ab.h"
#include "../cuda/enqueue.h"
#include "../cuda/lab_to_rgb.h"
#include "../cuda/random_masking.h"
#include "../cuda/restore_patches.h"
#include "../cuda/rgb_to_lab.h"
#include "../cuda/sinkhorn_knopp.h"
#include "../cuda/take_patches.h"
#include "../cuda/tiles.h"
#include "../cuda/update_center.h"
#include "bind.h"

namespace py = pybind11;
using namespace fastssl;

namespace {

// A kernel whose launch failed raises, with CUDA's own words.
template <class... A>
void bind_launch(py::module_& module, const char* name, cudaError_t (*launch)(A...)) {
    module.def(name, [launch, name](Crossing<A>... arguments) {
        const cudaError_t error = launch(native<A>(arguments)...);
        if (error != cudaSuccess) throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
    });
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.attr("architectures") = FASTSSL_CUDA_ARCHITECTURES;
    m.attr("runtime_version") = CUDART_VERSION;
    bind(m, "augment_blocks", +[] { return &cuda::augment_blocks; });
    m.def("augment_largest", [] { return cuda::kAugmentLargest; });
    bind(m, "distillation_loss_scratch", +[] { return &cuda::distillation_loss_scratch; });
    m.def("ema_chunk", [] { return cuda::kEmaChunk; });
    bind(m, "restore_patches_scratch", +[] { return &cuda::restore_patches_scratch; });
    bind(m, "sinkhorn_knopp_scratch", +[] { return &cuda::sinkhorn_knopp_scratch; });
    bind(m, "take_patches_scratch", +[] { return &cuda::take_patches_scratch; });
    bind(m, "update_center_scratch", +[] { return &cuda::update_center_scratch; });

    bind_launch(m, "augment", &cuda::augment);
    bind_launch(m, "block_masking", &cuda::block_masking);
    bind_launch(m, "decode_ab", &cuda::decode_ab);
    bind_launch(m, "distillation_loss_backward", &cuda::distillation_loss_backward);
    bind_launch(m, "distillation_loss_forward", &cuda::distillation_loss_forward);
    bind_launch(m, "ema_update", &cuda::ema_update);
    bind_launch(m, "encode_ab", &cuda::encode_ab);
    bind_launch(m, "enqueue", &cuda::enqueue);
    bind_launch(m, "lab_to_rgb", &cuda::lab_to_rgb);
    bind_launch(m, "random_masking", &cuda::random_masking);
    bind_launch(m, "restore_patches_backward", &cuda::restore_patches_backward);
    bind_launch(m, "restore_patches_forward", &cuda::restore_patches_forward);
    bind_launch(m, "rgb_to_lab", &cuda::rgb_to_lab);
    bind_launch(m, "sinkhorn_knopp", &cuda::sinkhorn_knopp);
    bind_launch(m, "take_patches_backward", &cuda::take_patches_backward);
    bind_launch(m, "take_patches_forward", &cuda::take_patches_forward);
    bind_launch(m, "tiles", &cuda::tiles);
    bind_launch(m, "update_center", &cuda::update_center);
}
