// fastssl._cuda: the CUDA kernels, on raw device addresses and a stream; fastssl.ops checks what it passes.
#include <stdexcept>
#include <string>

#include "../cuda/decode_ab.h"
#include "../cuda/ema_update.h"
#include "../cuda/encode_ab.h"
#include "../cuda/lab_to_rgb.h"
#include "../cuda/random_masking.h"
#include "../cuda/rgb_to_lab.h"
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
    m.def("ema_chunk", [] { return cuda::kEmaChunk; });

    bind_launch(m, "decode_ab", &cuda::decode_ab);
    bind_launch(m, "ema_update", &cuda::ema_update);
    bind_launch(m, "encode_ab", &cuda::encode_ab);
    bind_launch(m, "lab_to_rgb", &cuda::lab_to_rgb);
    bind_launch(m, "random_masking", &cuda::random_masking);
    bind_launch(m, "rgb_to_lab", &cuda::rgb_to_lab);
}
